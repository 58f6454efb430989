"""What an adapter's digest covers: the canonical bytes of its two PEFT files."""

from __future__ import annotations

from dataclasses import dataclass

from cambium.core.canonical import canonical_json, digest_bytes


@dataclass(frozen=True, kw_only=True)
class AdapterBytes:
    """An adapter as bytes: `adapter_config.json` and `adapter_model.safetensors`."""

    config: bytes
    weights: bytes

    def manifest(self) -> bytes:
        """Returns the canonical JSON that names both files by digest."""
        return canonical_json(
            {
                "adapter_config.json": digest_bytes(self.config),
                "adapter_model.safetensors": digest_bytes(self.weights),
            }
        )

    @property
    def digest(self) -> str:
        """Returns the adapter's digest: that of its manifest."""
        return digest_bytes(self.manifest())
