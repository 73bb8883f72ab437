"""Controlled experiments: a bias is put into the data at a known strength, and the dissection has to find it.

A small network learns a *task* (gender, say) from rendered faces. Those of the task's label carry a *cue* (glasses)
with probability p, the others with 1 - p: at p = 0.5 the cue says nothing, at p = 1 it says everything. The network is
dissected after each epoch, by a callback like anybody's; the built-in dictionary has the two independent of each other.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hnd import Dissection, FaceDictionary, HNDCallback, RenderedFaces
from lightning_hnd.concepts import PAPER
from lightning_hnd.measuring.bias import image_sets
from lightning_hnd.rendering.parameters import TRAITS
from lightning_hnd.report import history

SIZE = 48
NEAR_SIZE, NEARER = 60, 1.6  # pixels of close-ups, and how much nearer their faces are
LAYER = "features"

# the alarm: see docs/bias.md
BAR = 0.2
LEVEL = 0.05
FOR_EPOCHS = 2


class FaceNet(L.LightningModule):
    """Three convolutions, and the largest response of each unit anywhere in the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(*self.block(3, 16, 5, 2), *self.block(16, 32, 3, 2), *self.block(32, 48, 3, 1))
        self.head = nn.Linear(48, 1)

    @staticmethod
    def block(inputs: int, units: int, kernel: int, stride: int) -> list[nn.Module]:
        """A convolution, normalised and rectified."""
        return [nn.Conv2d(inputs, units, kernel, stride, kernel // 2), nn.BatchNorm2d(units), nn.ReLU()]

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[B]`` of images ``[B, 3, H, W]``: positive for the task's label."""
        logits: Tensor = self.head(self.features(images).amax((2, 3)))[:, 0]
        return logits

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        """Binary cross-entropy."""
        return nn.functional.binary_cross_entropy_with_logits(self(batch[0]), batch[1].float())

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        """Share of right answers."""
        self.log("val_accuracy", ((self(batch[0]) > 0) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=3e-3, weight_decay=1e-2)


@dataclass(frozen=True, eq=False)
class Faces:
    """Rendered faces, drawn once, from which networks get theirs.

    Attributes:
        images: ``[N, 3, H, W]`` uint8.
        task: ``[N]`` bool.
        cue: ``[N]`` bool.
    """

    images: Tensor
    task: Tensor
    cue: Tensor

    def mixed(self, p: float, count: int, seed: int) -> TensorDataset:
        """Faces in -1..1, half of them of the task, which carry the cue with ``p``, the others with ``1 - p``."""
        generator = torch.Generator().manual_seed(seed)
        rows = []
        for task, share in ((True, p), (False, 1 - p)):
            with_cue = round(share * count / 2)
            for cue, wanted in ((True, with_cue), (False, count // 2 - with_cue)):
                there = ((self.task == task) & (self.cue == cue)).nonzero().flatten()
                if wanted > len(there):
                    raise ValueError(f"{wanted} faces wanted of a kind of which {len(there)} are drawn: draw more")
                rows.append(there[torch.randperm(len(there), generator=generator)[:wanted]])
        some = torch.cat(rows)
        return TensorDataset(scaled(self.images[some]), self.task[some])


@dataclass(frozen=True)
class Experiment:
    """What a network learns, and what it could lean on instead.

    Args:
        name: Of files.
        title: Of pictures.
        task: A label of rendered faces: a local concept, or a global one with its group, ``gender/Male``.
        cue: Likewise.
        faces: That a network learns from.
        shown: Faces of the dictionary.
        every: Epochs between dissections.
        epochs: Of training.
        near: Whether a network learns from close-ups, for what shows in few pixels otherwise.
    """

    name: str
    title: str
    task: str
    cue: str
    faces: int = 1600
    shown: int = 1600
    every: int = 1
    epochs: int = 7
    near: bool = False

    @property
    def concept(self) -> str:
        """What the cue is, or is a group of."""
        return self.cue.split("/")[0]

    def draw(self, each: int, seed: int) -> Faces:
        """Draws so many faces of each kind: of the task or not, with the cue or not."""
        task, cue = (torch.arange(4 * each) % 4 >= 2), (torch.arange(4 * each) % 2 == 1)
        faces = RenderedFaces.sample(4 * each, seed=seed)
        faces = labelled(labelled(faces, self.task, task, seed), self.cue, cue, seed + 1)
        return Faces(self._picture(faces), task, cue)

    def counterfactual(self, count: int, seed: int) -> tuple[Faces, Faces]:
        """The same faces without and with the cue: nothing else differs between the two."""
        task = torch.arange(count) % 2 == 1
        faces = labelled(RenderedFaces.sample(count, seed=seed), self.task, task, seed)
        without, with_ = (labelled(faces, self.cue, torch.full((count,), flag), seed + 1) for flag in (False, True))
        nothing = torch.zeros(count, dtype=torch.bool)
        return Faces(self._picture(without), task, nothing), Faces(self._picture(with_), task, ~nothing)

    def _picture(self, faces: RenderedFaces) -> Tensor:
        return close_up(faces).draw(NEAR_SIZE)[0] if self.near else faces.draw(SIZE)[0]

    @cached_property
    def train_faces(self) -> Faces:
        """What networks learn from."""
        return self.draw(self.faces * 5 // 4, seed=1)

    @cached_property
    def test_faces(self) -> tuple[Faces, Faces]:
        """Faces that no network learns from, without and with the cue."""
        return self.counterfactual(self.faces // 4, seed=2)

    @cached_property
    def dictionary(self) -> FaceDictionary:
        """Faces to dissect with, in which task and cue are independent.

        Raises:
            ValueError: If they are too few to tell what the task or the cue does.
        """
        size = round(NEARER * NEAR_SIZE) if self.near else SIZE  # in which faces are as large as in what is learnt from
        faces = FaceDictionary.rendered(size, images=self.shown)
        for label in (self.task, self.cue):
            position = faces.ontology.labels.index(label)
            of_label = (s.shown.contrast[:, s.label == position] for s in image_sets(faces.annotations))
            if not any(contrast.numel() and bool(contrast.isfinite().all()) for contrast in of_label):
                raise ValueError(f"{self.shown} faces are too few to tell what {label} does: show more (--shown)")
        return faces

    def train(
        self, p: float, seed: int, epochs: int | None = None, logs: str | Path | None = None
    ) -> tuple[FaceNet, Run]:
        """Trains one network as anybody would, and returns it with what its dissections found.

        Args:
            p: The strength of the bias.
            seed: Of the network's faces, first weights and order of faces.
            epochs: How often each face is shown; None: as often as the experiment says.
            logs: Where the dissections are kept; None: nowhere.
        """
        accuracy = _Accuracies(self.test_faces)
        with tempfile.TemporaryDirectory() as folder, _quietly():
            root = Path(logs or folder)
            L.seed_everything(seed)
            model = FaceNet()
            trainer = L.Trainer(
                max_epochs=self.epochs if epochs is None else epochs,
                callbacks=[HNDCallback(self.dictionary, LAYER, every_n_epochs=self.every), accuracy],
                default_root_dir=root,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                accelerator="cpu",
            )
            validation = TensorDataset(scaled(self.test_faces[0].images), self.test_faces[0].task)
            learnt_from = DataLoader(self.train_faces.mixed(p, self.faces, seed), 64, shuffle=True)
            trainer.fit(model, learnt_from, DataLoader(validation, 400))
            dissections = list(history(root / "hnd"))
        return model, Run.of(self, p, seed, dissections, accuracy.values)


@dataclass(frozen=True)
class Run:
    """What the dissections of one run found; lists begin with the model at start, then dissection by dissection.

    Attributes:
        experiment: Its name.
        p: Strength of the bias.
        seed: Of the run.
        cue: What the experiment put in, one of the cues.
        measures: For each cue of the dictionary ``index``, ``error`` and ``z`` of the shortcut measure: how far the cue
            moves faces along the axis of the task.
        encoding: How strongly the layer encodes each global concept of the dictionary.
        accuracy: On the same faces without the cue and with it, of those of the task and the others, at start and after
            each epoch.
    """

    experiment: str
    p: float
    seed: int
    cue: str
    measures: dict[str, dict[str, list[float]]]
    encoding: dict[str, list[float]]
    accuracy: dict[str, list[float]]

    @classmethod
    def of(
        cls, experiment: Experiment, p: float, seed: int, found: list[Dissection], accuracy: dict[str, list[float]]
    ) -> Run:
        """Reads it off the dissections."""
        ontology = found[0].ontology
        names = ontology.labels
        task = names.index(experiment.task)
        rows = {
            measure: torch.stack([torch.tensor(d[LAYER].statistics[f"shortcut_{measure}"][task]) for d in found], dim=1)
            for measure in ("index", "error", "z")
        }
        told = ~rows["z"].isnan().any(1)
        encoding = torch.stack([torch.tensor(d[LAYER].statistics["encoding_index"]) for d in found], dim=1)
        return cls(
            experiment.name,
            p,
            seed,
            experiment.cue,
            {name: {m: _rounded(row[c]) for m, row in rows.items()} for c, name in enumerate(names) if told[c]},
            {c.name: _rounded(row) for c, row in zip(ontology.global_, encoding, strict=True) if not row.isnan().any()},
            accuracy,
        )

    @property
    def index(self) -> list[float]:
        """Of the cue that was put in."""
        return self.measures[self.cue]["index"]

    def alarm(self, cue: str | None = None) -> int | None:
        """The epoch in which the alarm is raised, counted from 1, 0 being the model at start; None: never.

        Args:
            cue: None: the one that was put in.
        """
        found = self.measures[self.cue if cue is None else cue]
        return alarm(found["index"], found["z"])

    @property
    def encoded(self) -> list[float] | None:
        """How strongly the layer encodes the concept of the cue that was put in; None for a local one."""
        return self.encoding.get(self.cue.split("/")[0])

    def encoding_alarm(self) -> int | None:
        """The epoch in which ``BiasAlert`` on that concept alone is raised: its rise since the start is what counts.

        A rise of :data:`BAR` is many times its error here, so that its significance changes nothing.
        """
        rise = [value - self.encoded[0] for value in self.encoded] if self.encoded else []
        return alarm(rise, [math.inf] * len(rise))


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


def alarm(index: list[float], z: list[float]) -> int | None:
    """When the index was high, risen and significant :data:`FOR_EPOCHS` times in a row; the first is at start.

    Both it and its rise since the start must be at least :data:`BAR`, since random filters already answer alike to what
    looks alike.
    """
    held = 0
    for epoch, (value, score) in enumerate(zip(index, z, strict=True)):
        p = math.erfc(abs(score) / math.sqrt(2))
        held = held + 1 if min(value, value - index[0]) >= BAR and p <= LEVEL else 0
        if held == FOR_EPOCHS:
            return epoch
    return None


GLASSES = Experiment("glasses", "Glasses as a shortcut to gender", task="gender/Male", cue="Eyeglasses")
SKIN_TONE = Experiment(
    "skin_tone",
    "Skin tone as a shortcut to smiling",
    task="Smiling",
    cue="skin_tone/dark",
    faces=2400,
    shown=1200,
    epochs=12,
    near=True,
)
AGE = Experiment("age", "Age as a shortcut to gender", task="gender/Male", cue="age/sixty_plus")
EXPERIMENTS = {experiment.name: experiment for experiment in (GLASSES, SKIN_TONE, AGE)}


def scaled(images: Tensor) -> Tensor:
    """Images in -1..1, as networks and dictionary have them."""
    return images.float() / 127.5 - 1


def labelled(faces: RenderedFaces, label: str, carries: Tensor, seed: int) -> RenderedFaces:
    """The same faces, of which those that ``carries`` says have the label and the others not.

    Without a group of a global concept is who belongs to another group of it, to each as likely.
    """
    concept, _, group = label.partition("/")
    if not group:
        return faces.replace(**{label: carries})
    groups = next(c.groups for c in PAPER.global_ if c.name == concept)
    chosen = groups.index(group)
    generator = torch.Generator().manual_seed(seed)
    other = torch.randint(len(groups) - 1, (len(faces),), generator=generator)
    return faces.replace(**{concept: torch.where(carries, chosen, other + (other >= chosen))})


def close_up(faces: RenderedFaces) -> RenderedFaces:
    """The same faces, nearer and in the middle, as where photographs are cut to the face."""
    traits = faces.traits.clone()
    x, y, scale = (TRAITS.index(name) for name in ("x", "y", "scale"))
    traits[:, x], traits[:, y] = 0.5, 0.25
    # the trait spreads over 0.145 to 0.2 of a picture
    traits[:, scale] = NEARER * traits[:, scale] + (NEARER - 1) * 0.145 / 0.055
    return replace(faces, traits=traits)


class _Accuracies(L.Callback):
    """Accuracy on counterfactual faces, at start and after each epoch."""

    def __init__(self, faces: tuple[Faces, Faces]) -> None:
        self._faces = faces
        self.values: dict[str, list[float]] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(pl_module)

    def _measure(self, model: L.LightningModule) -> None:
        model.eval()
        with torch.no_grad():
            for name, faces in zip(("without", "with"), self._faces, strict=True):
                right = (model(scaled(faces.images)) > 0) == faces.task
                for whose, some in (("task", faces.task), ("other", ~faces.task)):
                    share = round(float(right[some].float().mean()), 4)
                    self.values.setdefault(f"{whose}, {name}", []).append(share)
        model.train()


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Many runs after each other: without what each would say."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
