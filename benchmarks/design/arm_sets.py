"""Arm sets by name or from a file."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Final

import yaml

from steerdec.records.arms import ArmError, ArmSet, parse_arm_set

BUILT_IN: Final = ("quick", "figure3", "causal")


MAX_FILE_BYTES: Final = 1 << 20


def with_engine_floor(arm_set: ArmSet, batch_invariant: bool) -> ArmSet:
    """The set, with plain requests run twice where the engine may answer them differently.

    Where a batch's make-up changes the last bits of its logits, A/A differs from B in a few answers without
    steering having done anything. How many, only two plain arms with equal seeds can tell.
    """
    roles = [arm.role for arm in arm_set.arms]
    if batch_invariant or "identity" not in roles or "replicate" in roles:
        return arm_set
    baseline = arm_set.arm(arm_set.baseline)
    again = baseline.model_copy(
        update={
            "name": f"{baseline.name}-again",
            "role": "replicate",
            "about": "the same seeds: the engine's own floor",
        }
    )
    return ArmSet.model_validate(arm_set.model_copy(update={"arms": (*arm_set.arms, again)}).model_dump())


def load_arm_set(name_or_path: str) -> ArmSet:
    """A built-in set by name, else the set in the file.

    Raises:
        ArmError: there is no such set, or it is not a valid one; one line.
    """
    if name_or_path in BUILT_IN:
        text = (resources.files(__package__) / "arm_sets" / f"{name_or_path}.yaml").read_text("utf-8")
    else:
        path = Path(name_or_path)
        try:
            if path.stat().st_size > MAX_FILE_BYTES:
                raise ArmError(f"{path} is larger than {MAX_FILE_BYTES} bytes, so no arm set")
            text = path.read_text("utf-8")
        except FileNotFoundError:
            raise ArmError(
                f'--arms: "{name_or_path}" is neither a built-in set ({", ".join(BUILT_IN)}) nor a file (YAML or JSON)'
            ) from None
        except (OSError, UnicodeDecodeError) as e:
            raise ArmError(f"{path} cannot be read ({e})") from None
    try:
        arm_set = parse_arm_set(yaml.safe_load(text))
    except (yaml.YAMLError, RecursionError) as e:
        raise ArmError(f"{name_or_path} is neither YAML nor JSON ({' '.join(str(e).split())})") from None
    except ArmError as e:
        raise ArmError(f"{name_or_path}: {e}") from None
    return with_mask_paths(arm_set, Path(name_or_path).parent)


def with_mask_paths(arm_set: ArmSet, folder: Path) -> ArmSet:
    """The set with its masks found from any working directory; they were named from `folder`."""
    replays = {
        name: replay.model_copy(update={"mask": str((folder / replay.mask).resolve())})
        for name, replay in arm_set.replays.items()
    }
    return arm_set.model_copy(update={"replays": replays})
