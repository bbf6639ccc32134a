"""A note and tags that people attach to a sweep: `annotations.json` in its folder."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field

from search.core.problems import UsageError
from trainables.core.records import RecordError, read_record
from trainables.core.storage import Storage

logger = logging.getLogger(__name__)

ANNOTATIONS_FILE = "annotations.json"
_RESERVED = ("mlflow.", "search.", "fingerprint.")
_LONGEST = 5000  # characters of a note or a value, as many as MLflow keeps


@dataclass(frozen=True)
class Annotations:
    """The content of `annotations.json`."""

    note: str = ""
    """Free text; Markdown in MLflow."""
    tags: Mapping[str, str] = field(default_factory=dict)
    """Tags by key."""
    removed: tuple[str, ...] = ()
    """Keys of tags that were removed, which MLflow may still have."""

    @property
    def shown_tags(self) -> str:
        """The tags on one line."""
        return ", ".join(f"{key}={value}" for key, value in sorted(self.tags.items()))

    def changed(
        self, note: str | None, tags: Mapping[str, str], remove: Collection[str]
    ) -> Annotations:
        """Return these annotations with another note (None: the same), with other tags, and without
        those to remove; raises `UsageError` for what MLflow would not keep."""
        kept = {key: value for key, value in self.tags.items() if key not in remove}
        removed = tuple(dict.fromkeys(k for k in (*self.removed, *remove) if k not in tags))
        new = Annotations(self.note if note is None else note.strip(), kept | dict(tags), removed)
        if problems := new._problems():
            raise UsageError(problems)
        return new

    def _problems(self) -> list[str]:
        """Return one line per value that MLflow would not keep."""
        found = []
        for key, value in (dict.fromkeys(self.removed, "") | dict(self.tags)).items():
            if not re.fullmatch(r"\w[\w./ -]{0,199}", key) or key.startswith(_RESERVED):
                found.append(
                    "The key of a tag must be letters, digits, '_', '.', '/', '-' and spaces (at "
                    "most 200, the first a letter or digit) and must not begin with "
                    f"{', '.join(_RESERVED)}, got '{key[:60]}'. Use e.g. --tag team=vision."
                )
            elif len(value) > _LONGEST:
                found.append(
                    f"The value of a tag must have at most {_LONGEST} characters, got "
                    f"{len(value)} for '{key}'. Shorten it, or use --note."
                )
        if len(self.note) > _LONGEST:
            found.append(
                f"A note must have at most {_LONGEST} characters, got {len(self.note)}. Shorten it."
            )
        return found


def read_annotations(sweep: Storage) -> Annotations:
    """The annotations of a sweep, empty if there are none; a damaged file is logged and ignored.
    Raises `StorageError`."""
    try:
        return read_record(Annotations, sweep.read(ANNOTATIONS_FILE))
    except FileNotFoundError:
        return Annotations()
    except RecordError as error:
        logger.warning("%s in '%s' is ignored: %s", ANNOTATIONS_FILE, sweep.location, error)
        return Annotations()


def write_annotations(sweep: Storage, annotations: Annotations) -> None:
    """Replace the annotations; raises `StorageError`."""
    text = json.dumps(asdict(annotations), indent=1, ensure_ascii=False) + "\n"
    sweep.write(ANNOTATIONS_FILE, text.encode())
