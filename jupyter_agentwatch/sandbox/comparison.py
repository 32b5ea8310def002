"""What a step changed in effect: its pre-images compared with what the next step found, or with what is there now.

It only reads, and without the lock that `WorkspaceHistory.touch` needs: comparing may take as long as it takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import zip_longest
from typing import Literal

from jupyter_agentwatch.events import from_bytes, printable
from jupyter_agentwatch.sandbox.beneath import MAX_PATH, NotKeptError, WorkspaceTree, open_regular, why
from jupyter_agentwatch.sandbox.preimage import BlobStore, Image, bytes_text, file_chunks, look, look_at
from jupyter_agentwatch.sandbox.steplog import StepLog, above, known, next_image
from jupyter_agentwatch.sandbox.textdiff import DiffBudget, unified_diff

__all__ = ["ChangeKind", "Comparison", "Effect", "StepChange", "Survey"]

ChangeKind = Literal["added", "modified", "removed", "mode", "times", "type", "unclaimed"]
"""What became of a path; "type" is one kind of thing replaced by another, "mode" is permissions only, "times" is a
modification time that was set, and nothing else, "unclaimed" is a change that no call on record explains, so that
nothing is known of what was there before."""

_LIST_PATHS = 100_000  # listed below one directory that came
_DIFF_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class StepChange:
    """One path that a step changed. All texts are the agent's: show them only through `events.printable`.

    Attributes:
        path: Relative to the workspace; bytes that are not UTF-8 as `\\xNN`.
        change: What became of it.
        diff: Unified diff, where both sides are UTF-8 text of at most 256 KiB.
        note: Why there is no diff or no pre-image, and what a diff cannot show.
    """

    path: str
    change: ChangeKind
    diff: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Effect:
    """One path that a step changed: what it was and is, and the moment of the step's first touch."""

    change: ChangeKind
    first: int
    before: Image
    after: Image


@dataclass(slots=True)
class Survey:
    """What a step changed, as seen at one moment.

    Attributes:
        moment: Count of all touches when the logs were copied.
        own: The step's log.
        others: The logs of all other steps.
        effects: What changed, by path.
        present: What is in the workspace now, as far as it was looked at.
        incomplete: Why what is below a directory is not known in full.
    """

    moment: int
    own: StepLog
    others: dict[int, StepLog]
    effects: dict[bytes, Effect] = field(default_factory=dict)
    present: dict[bytes, Image] = field(default_factory=dict)
    incomplete: dict[bytes, str] = field(default_factory=dict)


class Comparison:
    """Compares what was kept.

    Args:
        tree: The workspace.
        store: Holds the contents; none may be dropped while a comparison runs.
    """

    def __init__(self, tree: WorkspaceTree, store: BlobStore) -> None:
        self._tree, self._store = tree, store

    def survey(self, moment: int, own: StepLog, others: dict[int, StepLog]) -> Survey:
        """Return the effects of a step.

        Args:
            moment: Count of all touches now.
            own: The step's log.
            others: The logs of all other steps, by their numbers.
        """
        survey = Survey(moment, own, others)
        shared = self._shared(survey)
        for rel in self._candidates(survey):
            told = known(own, rel)
            if told is None or (told[1].kind == "unknown" and rel not in own):
                continue
            entry, before = told
            if before.kind == "file" and before.names > 1:
                _, before = shared.get(before.ident[:2], (0, before))
            after = next_image(others.values(), rel, entry.first) or self.now(survey, rel)
            change = self._change(rel, before, after)
            if change is None and rel in own and entry.timed and before.changed_ns != after.changed_ns:
                change = "times" if before.kind in {"file", "symlink"} else None
            if rel in own and entry.below:
                survey.incomplete[rel] = f"not all pre-images below it were kept: {entry.below}"
            if rel in survey.incomplete:
                change = change or "modified"
            if change:
                survey.effects[rel] = Effect(change, entry.first, before, after)
        return survey

    def now(self, survey: Survey, rel: bytes) -> Image:
        """Return what a path is now, looked at once in a survey."""
        image = survey.present.get(rel)
        if image is None:
            image = survey.present[rel] = look(self._tree, rel)
        return image

    def describe(self, survey: Survey) -> list[StepChange]:
        """Return the effects as they are told to a person, sorted by path."""
        budget = DiffBudget()
        return [self._described(rel, survey, budget) for rel in sorted(survey.effects)]

    def _candidates(self, survey: Survey) -> set[bytes]:
        """Every path that the step may have changed: those touched, and all below a directory that came or went."""
        found = set(survey.own)
        roots = {q for q, e in survey.own.items() if q and (e.image.kind not in _OPAQUE or e.below is not None)}
        walked: set[bytes] = set()
        for top in sorted(roots):
            if any(folder in walked for folder in above(top)) or self.now(survey, top).kind != "directory":
                continue
            walked.add(top)
            try:
                for rel, folder, info in self._tree.walk(top, _LIST_PATHS):
                    survey.present[rel] = look_at(folder, rel.rpartition(b"/")[2], info)
                    found.add(rel)
            except NotKeptError as error:
                survey.incomplete[top] = f"not all below it was read: {error}"
        for log in survey.others.values():
            found.update(q for q in log if any(folder in roots for folder in above(q)))
        return found

    def _shared(self, survey: Survey) -> dict[tuple[int, int], tuple[int, Image]]:
        """Return what files with several names (hard links) were when the step first touched them by any of them."""
        firsts: dict[tuple[int, int], tuple[int, Image]] = {}
        for rel, entry in survey.own.items():
            image, inode = entry.image, entry.image.ident[:2]
            # Where the path has another inode by now, the number may be another file's, too.
            if image.kind == "file" and image.names > 1 and self.now(survey, rel).ident[:2] == inode:
                firsts[inode] = min(firsts.get(inode, (entry.first, image)), (entry.first, image), key=lambda e: e[0])
        return firsts

    def _change(self, rel: bytes, before: Image, after: Image) -> ChangeKind | None:
        if before.kind == "absent":
            return None if after.kind == "absent" else "added"
        if after.kind == "absent":
            return "removed"
        if "unknown" in {before.kind, after.kind}:
            return "modified"
        if before.kind != after.kind:
            return "type"
        if before.kind == "symlink":
            return "modified" if before.target != after.target else None
        if before.kind == "special" and before.ident[:2] != after.ident[:2]:
            return "modified"
        if before.kind == "file" and not self._same_content(rel, before, after):
            return "modified"
        return "mode" if before.mode != after.mode else None

    def _same_content(self, rel: bytes, before: Image, after: Image) -> bool:
        if before.size != after.size:
            return False
        if before.lost or after.lost:
            return before.settled and before.ident == after.ident
        # Equal stamps prove nothing where a content can be had: a store through mmap need not change them.
        try:
            pairs = zip_longest(self._chunks(rel, before), self._chunks(rel, after))
            return all(old == new for old, new in pairs)
        except (OSError, NotKeptError):
            return False

    def _chunks(self, rel: bytes, image: Image) -> Iterator[bytes]:
        if image.blob is not None:
            yield from self._store.chunks(image.blob)
            return
        with self._tree.parent(rel) as (folder, name), open_regular(folder, name) as (fd, _):
            yield from file_chunks(fd, 0, image.size)

    def _described(self, rel: bytes, survey: Survey, budget: DiffBudget) -> StepChange:
        effect = survey.effects[rel]
        before, after = effect.before, effect.after
        kinds = {before.kind, after.kind}
        notes, diff = [], ""
        if "unknown" in kinds:
            notes.append(f"not known what it was: {before.lost or after.lost}")
        elif effect.change not in {"mode", "times"}:
            try:
                diff = self._diff(rel, before, after, budget) if "file" in kinds else ""
            except (OSError, NotKeptError) as error:
                notes.append(why(error))
            notes += dict.fromkeys(_kind_text(image) for image in (before, after) if image.kind not in _PLAIN)
        if before.kind == after.kind != "symlink" and before.mode != after.mode:
            notes.append(f"mode {before.mode:04o} → {after.mode:04o}")
        is_own_time = before.kind == after.kind in {"file", "symlink"} and before.changed_ns != after.changed_ns
        if effect.change in {"mode", "times"} and is_own_time:
            notes.append(f"modified {_moment(before)} → {_moment(after)}")
        if before.kind == after.kind == "file" and before.names > 1 and before.ident[:2] == after.ident[:2]:
            notes.append(f"{before.names} names (hard links) share this content")
        if rel in survey.incomplete:
            notes.append(survey.incomplete[rel])
        return StepChange(from_bytes(rel) or ".", effect.change, diff, "; ".join(notes))

    def _diff(self, rel: bytes, before: Image, after: Image, budget: DiffBudget) -> str:
        old = self._text(rel, before, "pre-image")
        new = self._text(rel, after, "content after the step")
        name = printable(from_bytes(rel), MAX_PATH)
        old_name = "/dev/null" if before.kind == "absent" else f"a/{name}"
        new_name = "/dev/null" if after.kind == "absent" else f"b/{name}"
        diff = unified_diff(old, new, (old_name, new_name), budget)
        if old != new and not diff:
            msg = "no diff: the answer would become too long"
            raise NotKeptError(msg)
        return diff

    def _text(self, rel: bytes, image: Image, side: str) -> str:
        if image.kind != "file":
            return ""
        if image.lost:
            msg = f"{side} not kept: {image.lost}"
            raise NotKeptError(msg)
        if image.size > _DIFF_BYTES:
            msg = f"larger than {bytes_text(_DIFF_BYTES)}"
            raise NotKeptError(msg)
        content = b"".join(self._chunks(rel, image))
        try:
            text = content.decode()
        except UnicodeDecodeError:
            text = "\0"
        if "\0" in text:
            msg = "binary"
            raise NotKeptError(msg)
        return text


_OPAQUE = frozenset({"directory", "unknown"})
_PLAIN = frozenset({"absent", "file"})


def _moment(image: Image) -> str:
    try:
        return datetime.fromtimestamp(image.changed_ns / 1e9, tz=UTC).isoformat(" ", "milliseconds")
    except (OverflowError, ValueError, OSError):  # a file may be of any year
        return f"{image.changed_ns} ns"


def _kind_text(image: Image) -> str:
    return f"symbolic link to {from_bytes(image.target)}" if image.kind == "symlink" else image.kind
