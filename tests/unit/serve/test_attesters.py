from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests import nvidia_machine, tdx_machine
from tests.snp_machine import LAUNCH, MEASUREMENT, NOW, Machine, reference, revocation_list
from tests.tdx_machine import REGISTERS

from cambium.core.errors import AttestationRefused, ConfigError
from cambium.serve.attesters import TDX_FILES, attester_of
from cambium.trust.providers import nvidia, sev_snp, tdx

TEXT = f"""
ark = "{reference().ark}"
measurements = ["{LAUNCH.hex()}"]
minimum = {{ boot_loader = 4, tee = 0, snp = 16, microcode = 200 }}
revocation = false
"""


def folder_of(machine: Machine, folder: Path, text: str = TEXT) -> Path:
    (folder / "sev-snp.toml").write_text(text)
    (folder / "sev-snp").mkdir()
    for name, data in zip(("vcek", "ask", "ark"), machine.certificates(), strict=True):
        (folder / "sev-snp" / f"{name}.der").write_bytes(data)
    return folder


def test_a_folder_without_references_has_softwares(tmp_path: Path) -> None:
    found = attester_of(tmp_path, session="ed25519:x")
    assert found.label == "software-dev"
    result = found.attest(accept=("software-dev",), measurement=MEASUREMENT, now=NOW)
    assert (result.hardware_rooted, result.debug) == (False, True)
    with pytest.raises(AttestationRefused):
        found.attest(accept=("sev-snp",), measurement=MEASUREMENT, now=NOW)


def test_a_folder_with_references_asks_the_processor_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    found = attester_of(folder_of(machine, tmp_path), session="ed25519:x")
    assert found.label == "sev-snp"
    accept = ("sev-snp", "software-dev")
    monkeypatch.setattr(sev_snp, "TSM_REPORTS", tmp_path / "none")
    with pytest.raises(AttestationRefused, match="no report"):
        found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)

    def attest(self: object, nonce: str, *, now: int, measurement: str) -> sev_snp.SnpEvidence:
        payload = sev_snp.claims_payload(
            nonce, session="ed25519:x", measurement=measurement, now=now
        )
        return machine.evidence(payload)

    monkeypatch.setattr(sev_snp.SnpAttester, "attest", attest)
    result = found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)
    assert (result.label, result.hardware_rooted, result.measurement) == (
        "sev-snp", True, MEASUREMENT)  # fmt: skip
    with pytest.raises(AttestationRefused, match="does not accept"):
        found.attest(accept=("software-dev",), measurement=MEASUREMENT, now=NOW)


def test_a_demanded_revocation_list_is_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine, text = Machine(), TEXT.replace("revocation = false", "revocation = true")
    found = attester_of(folder_of(machine, tmp_path, text), session="ed25519:x")

    def attest(self: object, nonce: str, *, now: int, measurement: str) -> sev_snp.SnpEvidence:
        return machine.evidence(
            sev_snp.claims_payload(nonce, session="ed25519:x", measurement=measurement, now=now)
        )

    monkeypatch.setattr(sev_snp.SnpAttester, "attest", attest)
    file = tmp_path / "sev-snp" / "crl.der"
    for listed, refusal in ((None, "missing"), ((), ""), (("ASK",), "revoked"), ((), "")):
        if listed is not None:
            file.write_bytes(revocation_list(*listed))
        if refusal:
            with pytest.raises(AttestationRefused, match=refusal):
                found.attest(accept=("sev-snp",), measurement=MEASUREMENT, now=NOW)
        else:
            found.attest(accept=("sev-snp",), measurement=MEASUREMENT, now=NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not toml",
        TEXT.replace("ark =", "arc ="),
        TEXT.replace(reference().ark, "00"),
        TEXT.replace(LAUNCH.hex(), LAUNCH.hex()[:-2]),
        TEXT.replace(f'["{LAUNCH.hex()}"]', "[]"),
        TEXT.replace("snp = 16", "snp = 256"),
        TEXT.replace("tee = 0, ", ""),
        TEXT.replace("revocation = false", ""),
        TEXT.replace("revocation = false", "revocation = 1"),
    ],
)
def test_references_that_cannot_be_used_stop_the_server(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        attester_of(folder_of(Machine(), tmp_path, text), session="ed25519:x")


def test_missing_certificates_stop_the_server(tmp_path: Path) -> None:
    folder_of(Machine(), tmp_path)
    (tmp_path / "sev-snp" / "vcek.der").unlink()
    with pytest.raises(ConfigError, match="certificates"):
        attester_of(tmp_path, session="ed25519:x")


TDX_TEXT = f"""
root = "{tdx_machine.reference().root}"
statuses = ["UpToDate"]
[[machines]]
mrtd = "{REGISTERS[0].hex()}"
rtmr = {json.dumps([register.hex() for register in REGISTERS[1:]])}
"""


def tdx_folder(folder: Path, text: str = TDX_TEXT) -> Path:
    (folder / "tdx.toml").write_text(text)
    (folder / "tdx").mkdir()
    for name, file in TDX_FILES.items():
        (folder / "tdx" / file).write_bytes(getattr(tdx_machine.collateral(), name))
    return folder


def test_a_tdx_machine_is_held_to_references_and_to_files_that_are_read_each_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = attester_of(tdx_folder(tmp_path), session="ed25519:x")
    assert found.label == "tdx"
    accept = ("tdx", "software-dev")
    with pytest.raises(AttestationRefused, match="no report"):
        found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)

    def attest(self: object, nonce: str, *, now: int, measurement: str) -> tdx.TdxEvidence:
        payload = tdx.tdx_claims(nonce, session="ed25519:x", measurement=measurement, now=now)
        return tdx_machine.Machine().evidence(payload)

    monkeypatch.setattr(tdx.TdxAttester, "attest", attest)
    result = found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)
    assert (result.label, result.hardware_rooted, result.debug) == ("tdx", True, False)
    crl = tmp_path / "tdx" / "root-crl.der"
    crl.write_bytes(tdx_machine.revoked("platform"))
    with pytest.raises(AttestationRefused, match="revoked"):
        found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)
    crl.unlink()
    with pytest.raises(AttestationRefused, match="collateral"):
        found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)


@pytest.mark.parametrize(
    "text",
    [
        "",
        TDX_TEXT.replace("root =", "roof ="),
        TDX_TEXT.replace('["UpToDate"]', "[]"),
        TDX_TEXT.partition("[[machines]]")[0],
        TDX_TEXT.replace(REGISTERS[0].hex(), "00"),
        TDX_TEXT.replace("rtmr = [", 'rtmr = ["' + "00" * 48 + '", '),
    ],
    ids=lambda _: "text",  # which names a random root
)
def test_tdx_references_that_cannot_be_used_stop_the_server(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"tdx\.toml"):
        attester_of(tdx_folder(tmp_path, text), session="ed25519:x")


def test_references_of_two_processors_stop_the_server(tmp_path: Path) -> None:
    tdx_folder(folder_of(Machine(), tmp_path))
    with pytest.raises(ConfigError, match="both"):
        attester_of(tmp_path, session="ed25519:x")


GPU_TEXT = f"""
root = "{nvidia_machine.reference().root}"
revocation = true
[[states]]
driver = "{nvidia_machine.DRIVER}"
vbios = "{nvidia_machine.VBIOS.upper()}"
measurements = {{ 1 = ["{"01" * 48}"], 2 = ["{"00" * 48}", "{"02" * 48}"] }}
"""


def gpu_folder(folder: Path, text: str = GPU_TEXT) -> Path:
    (folder / "nvidia.toml").write_text(text)
    (folder / "nvidia").mkdir()
    (folder / "nvidia" / "root-crl.der").write_bytes(nvidia_machine.revoked())
    (folder / "nvidia" / "line-crl.der").write_bytes(nvidia_machine.revoked(issuer="line"))
    return folder


def test_a_gpu_beside_a_processor_is_held_to_both_references(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = attester_of(gpu_folder(tdx_folder(tmp_path)), session="ed25519:x")
    assert found.label == "tdx+nvidia"
    accept = ("tdx+nvidia", "tdx", "software-dev")

    def attest(self: object, nonce: str, *, now: int, measurement: str) -> tdx.TdxEvidence:
        payload = tdx.tdx_claims(nonce, session="ed25519:x", measurement=measurement, now=now)
        return tdx_machine.Machine().evidence(payload)

    def ask(self: object, nonce: str, *, now: int, measurement: str) -> nvidia.NvidiaEvidence:
        payload = nvidia.gpu_claims(nonce, session="ed25519:x", measurement=measurement, now=now)
        return nvidia_machine.Gpu().evidence(payload)

    monkeypatch.setattr(tdx.TdxAttester, "attest", attest)
    with pytest.raises(AttestationRefused, match=r"nvidia-ml-py|GPU"):
        found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)
    monkeypatch.setattr(nvidia.NvidiaAttester, "attest", ask)
    result = found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)
    assert (result.label, result.hardware_rooted, result.debug) == ("tdx+nvidia", True, False)
    for less in (("tdx",), ("nvidia",), ("sev-snp+nvidia",)):
        with pytest.raises(AttestationRefused, match="does not accept"):
            found.attest(accept=less, measurement=MEASUREMENT, now=NOW)
    (tmp_path / "nvidia" / "line-crl.der").unlink()
    with pytest.raises(AttestationRefused, match="missing"):
        found.attest(accept=accept, measurement=MEASUREMENT, now=NOW)


def test_amds_processor_may_stand_beside_a_gpu(tmp_path: Path) -> None:
    found = attester_of(gpu_folder(folder_of(Machine(), tmp_path)), session="ed25519:x")
    assert found.label == "sev-snp+nvidia"


def test_a_gpu_without_a_processor_stops_the_server(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="alone"):
        attester_of(gpu_folder(tmp_path), session="ed25519:x")


@pytest.mark.parametrize(
    "text",
    [
        "",
        GPU_TEXT.replace("root =", "roof ="),
        GPU_TEXT.replace("revocation = true", ""),
        GPU_TEXT.partition("[[states]]")[0],
        GPU_TEXT.partition("measurements")[0],
        GPU_TEXT.partition("measurements")[0] + "measurements = {}",
        GPU_TEXT.replace(" 1 = [", " 0 = ["),
        GPU_TEXT.replace(" 1 = [", " x = ["),
        GPU_TEXT.replace(" 1 = [", " 02 = ["),
        GPU_TEXT.replace("01" * 48, "01" * 47),
        GPU_TEXT.replace(f'["{"01" * 48}"]', "[]"),
        GPU_TEXT.replace(nvidia_machine.DRIVER, ""),
    ],
    ids=lambda _: "text",  # which names a random root
)
def test_gpu_references_that_cannot_be_used_stop_the_server(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"nvidia\.toml"):
        attester_of(gpu_folder(tdx_folder(tmp_path), text), session="ed25519:x")
