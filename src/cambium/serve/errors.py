"""What only a server's callers can meet; the root and all else stands in `cambium.core.errors`."""

from __future__ import annotations

from cambium.core.errors import CambiumError, DataError, TrustError


class NotFound(CambiumError, code="not_found"):
    """A name that nothing answers to."""


class NotUtf8(DataError, code="not_utf8"):
    """Bytes that are not UTF-8 text."""


class TooLarge(DataError, code="too_large"):
    """Input over a bound of the policy."""


class LossUnavailable(DataError, code="loss_unavailable"):
    """A loss this server does not offer."""


class ModelNotFound(NotFound, code="model_not_found"):
    """A model or adapter name that nothing answers to; never the base instead."""


class AdapterNotFound(NotFound, code="adapter_not_found"):
    """No adapter has this name or digest."""


class DomainNotFound(NotFound, code="domain_not_found"):
    """The policy does not list this domain, or no adapter serves it."""


class ProposalNotFound(NotFound, code="proposal_not_found"):
    """No proposal has this id."""


class RevisionNotFound(NotFound, code="revision_not_found"):
    """No revision has this number."""


class TraceNotFound(NotFound, code="trace_not_found"):
    """No answered request has this id."""


class AdapterKindRefused(CambiumError, code="adapter_kind_refused"):
    """A kind of adapter where another is needed: to begin from, or to learn on top of."""


class AdapterExpired(CambiumError, code="adapter_expired"):
    """An ephemeral adapter past its time to live."""


class AdapterElsewhere(CambiumError, code="adapter_elsewhere"):
    """Another process of this state teaches the adapter; `detail["address"]` says which."""


class NotCurrent(CambiumError, code="not_current"):
    """This process may have been overtaken by others of its state, or cannot verify them."""


class AdapterQuarantined(CambiumError, code="adapter_quarantined"):
    """An adapter that failed its check, or came with a revision in quarantine; it stays out."""


class Unauthenticated(CambiumError, code="unauthenticated"):
    """No bearer token, or one that this server does not know."""


class RoleMissing(CambiumError, code="role_missing"):
    """The token's roles do not include what the route asks for."""


class PageForged(CambiumError, code="page_forged"):
    """A browser's request for a change that does not come from this server's own page."""


class RateLimited(CambiumError, code="rate_limited"):
    """More requests than the token may send; `detail["retry_after_s"]` says when to go on."""


class BudgetExceeded(CambiumError, code="budget_exceeded"):
    """The policy's budget for this adapter or this server is spent."""


class StateLocked(CambiumError, code="state_locked"):
    """Another process holds the state folder."""


class StateUnreachable(CambiumError, code="state_unreachable"):
    """The state's database does not answer; what was not acknowledged may have to be sent again."""


class StateCorrupt(CambiumError, code="state_corrupt"):
    """Stored bytes do not hash to their name, or a row refers to missing bytes."""


class StorageFull(CambiumError, code="storage_full"):
    """The disk took no more; nothing was changed."""


class SystemKilled(CambiumError, code="killed"):
    """Somebody pulled the kill switch; only the quorum lifts it."""


class PolicyMissing(TrustError, code="policy_missing"):
    """No signed policy: the state can learn but not merge."""
