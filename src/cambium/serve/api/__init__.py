"""HTTP: thin routes over the services, one table of statuses."""
