"""NVIDIA's way to a GPU in confidential mode, its management library; no machine here has one.

The library comes with the driver, its reader for Python (`nvidia-ml-py`) is not among what is
installed by default. What it says of modes is not signed, so it can only refuse here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from cambium.core.errors import AttestationRefused

_ON, _OFF, _PRODUCTION = 1, 0, 2


def gpu_report(nonce: bytes) -> tuple[bytes, bytes]:
    """Returns what the machine's only GPU signs over 32 bytes of ours, and its certificates as PEM.

    Raises:
        AttestationRefused: there is no such GPU, or more than one, or it said no.
    """
    try:
        nvml: Any = import_module("pynvml")
    except ImportError as error:
        raise _refused("nvidia-ml-py is not installed") from error
    try:
        nvml.nvmlInit()
        try:
            return _asked(nvml, nonce)
        finally:
            nvml.nvmlShutdown()
    except (nvml.NVMLError, AttributeError) as error:
        raise _refused(f"no report from the GPU: {error}") from error


def _asked(nvml: Any, nonce: bytes) -> tuple[bytes, bytes]:
    state = nvml.nvmlSystemGetConfComputeState()
    found = (state.ccFeature, state.devToolsMode, state.environment)
    if found != (_ON, _OFF, _PRODUCTION):
        raise _refused("the GPU is not in confidential mode, or in a debugger's or a simulation's")
    if (count := nvml.nvmlDeviceGetCount()) != 1:
        raise _refused(f"{count} GPUs are there, and one can be vouched for")
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    report = nvml.nvmlDeviceGetConfComputeGpuAttestationReport(gpu, nonce)
    chain = nvml.nvmlDeviceGetConfComputeGpuCertificate(gpu)
    return (bytes(report.attestationReport)[: report.attestationReportSize],
            bytes(chain.attestationCertChain)[: chain.attestationCertChainSize])  # fmt: skip


def _refused(why: str) -> AttestationRefused:
    return AttestationRefused(
        f"attestation refused: {why}", mend="run on a machine that the references accept"
    )
