"""A processor that vouches for a GPU beside it, as one piece of evidence under one label.

Neither says anything of the other by itself. The GPU answers the verifier's nonce; the processor
answers a nonce that the GPU's evidence goes into. So evidence of a GPU that the measured machine
did not ask, or of one swapped on the way, is refused. What the machine's driver talks to after that
is the driver's to secure: its session with the GPU is in no report.

Source: RFC 9334, section 3.3 (a lead attester of a composite device).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from cambium.core.canonical import canonical_json, digest_bytes
from cambium.trust.attestation import NVIDIA, Claims, Verifier, require
from cambium.trust.providers.nvidia import NvidiaAttester, NvidiaEvidence, NvidiaVerifier

Processor = TypeVar("Processor")
Made = TypeVar("Made", covariant=True)


class Attester(Protocol, Generic[Made]):
    """Makes one provider's evidence."""

    def attest(self, nonce: str, *, now: int, measurement: str) -> Made:
        """Returns evidence that answers `nonce`, valid for 300 s."""
        ...


@dataclass(frozen=True, kw_only=True)
class WithGpuEvidence(Generic[Processor]):
    """The GPU's evidence, and the processor's that covers it."""

    processor: Processor
    gpu: NvidiaEvidence


@dataclass(frozen=True, kw_only=True)
class WithGpuVerifier(Generic[Processor]):
    """Trusts both roots, each for its own part."""

    processor: Verifier[Processor]
    gpu: NvidiaVerifier

    @property
    def label(self) -> str:
        """Returns the processor's label and the GPU's, as `tdx+nvidia`."""
        return f"{self.processor.label}+{NVIDIA}"

    def verify(self, evidence: WithGpuEvidence[Processor], *, nonce: str) -> Claims:
        """Returns the claims that both vouch for and that answer `nonce`.

        Raises:
            AttestationRefused: says which check failed.
        """
        gpu = self.gpu.verify(evidence.gpu, nonce=nonce)
        bound = nonce_over(nonce, evidence.gpu)
        found = self.processor.verify(evidence.processor, nonce=bound)
        require(found == gpu, "processor and GPU do not vouch for the same")
        return found


@dataclass(frozen=True, kw_only=True)
class WithGpuAttester(Generic[Processor]):
    """Asks the GPU first, and then the processor."""

    processor: Attester[Processor]
    gpu: NvidiaAttester

    def attest(self, nonce: str, *, now: int, measurement: str) -> WithGpuEvidence[Processor]:
        """Returns evidence that answers `nonce`, valid for 300 s.

        Raises:
            AttestationRefused: the machine has no such processor or GPU, or one said no.
        """
        gpu = self.gpu.attest(nonce, now=now, measurement=measurement)
        bound = nonce_over(nonce, gpu)
        processor = self.processor.attest(bound, now=now, measurement=measurement)
        return WithGpuEvidence(processor=processor, gpu=gpu)


def nonce_over(nonce: str, gpu: NvidiaEvidence) -> str:
    """Returns what the processor answers, 32 bytes as hex: over nonce and the GPU's evidence."""
    parts = {name: digest_bytes(part) for name, part in vars(gpu).items()}
    return digest_bytes(canonical_json({"nonce": nonce, **parts})).removeprefix("sha256:")
