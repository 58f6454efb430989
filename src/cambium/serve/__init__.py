"""The shell: where the tensor column and the trust column meet, behind HTTP."""
