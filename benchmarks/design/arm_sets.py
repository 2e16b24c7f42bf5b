"""Load arm sets by name or from a file."""

from __future__ import annotations

from importlib import resources
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import yaml

from steerdec.common.errors import reason_of
from steerdec.common.files import read_at_most
from steerdec.records.arms import ArmError, ArmSet, parse_arm_set

BUILT_IN: Final = ("quick", "figure3", "causal", "branching")
MAX_FILE_BYTES: Final = 1 << 20


def with_engine_floor(arm_set: ArmSet, batch_invariant: bool) -> ArmSet:
    """Return the set with a repeated baseline if the engine may answer plain requests differently.

    If a batch's composition changes the last bits of its logits, A/A differs from B in a few answers although steering
    did nothing. Only two plain arms with equal seeds can show how many.
    """
    roles = [arm.role for arm in arm_set.arms]
    if batch_invariant or "identity" not in roles or "replicate" in roles:
        return arm_set
    baseline = arm_set.arm(arm_set.baseline)
    names = {arm.name for arm in arm_set.arms}
    candidates = (f"{baseline.name}-again{suffix}" for suffix in chain([""], (f"-{i}" for i in count(2))))
    again = baseline.model_copy(
        update={
            "name": next(name for name in candidates if name not in names),
            "role": "replicate",
            "about": "the same seeds: the engine's own floor",
        }
    )
    return ArmSet.model_validate(arm_set.model_copy(update={"arms": (*arm_set.arms, again)}).model_dump())


class _EachKeyOnce(yaml.SafeLoader):
    """YAML's own loader keeps the last of several equal keys, in silence."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise ArmError(f'line {key.start_mark.line + 1}: field "{key.value}" is there already')
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)


def load_arm_set(name_or_path: str) -> ArmSet:
    """Load a built-in set by name, else the set in the file.

    Raises:
        ArmError: there is no such set, or it is not valid.
    """
    if name_or_path in BUILT_IN:
        text = built_in_text(name_or_path)
    else:
        path = Path(name_or_path)
        try:
            text = read_at_most(path, MAX_FILE_BYTES).decode()
        except (OSError, UnicodeDecodeError) as e:
            if isinstance(e, FileNotFoundError) or not name_or_path.strip():
                known = ", ".join(BUILT_IN)
                raise ArmError(
                    f'--arms: "{name_or_path}" is neither a built-in set ({known}) nor a file (YAML or JSON)'
                ) from None
            raise ArmError(f"{path} cannot be read ({reason_of(e)})") from None
    try:
        arm_set = parse_arm_set(yaml.load(text, _EachKeyOnce))
    except (yaml.YAMLError, RecursionError) as e:
        raise ArmError(f"{name_or_path} is neither YAML nor JSON ({' '.join(str(e).split())})") from None
    except ArmError as e:
        raise ArmError(f"{name_or_path}: {e}") from None
    return with_mask_paths(arm_set, Path(name_or_path).parent)


def built_in_text(name: str) -> str:
    """Return the YAML of a built-in set, to edit. Raises ArmError."""
    if name not in BUILT_IN:
        raise ArmError(f'"{name}" is not a built-in arm set; there are {", ".join(BUILT_IN)}')
    return (resources.files(__package__) / "arm_sets" / f"{name}.yaml").read_text("utf-8")


def with_mask_paths(arm_set: ArmSet, folder: Path) -> ArmSet:
    """Return the set with the paths of its masks, given relative to `folder`, valid from any working directory."""
    replays = {
        name: replay.model_copy(update={"mask": str((folder / replay.mask).resolve())})
        for name, replay in arm_set.replays.items()
    }
    return arm_set.model_copy(update={"replays": replays})
