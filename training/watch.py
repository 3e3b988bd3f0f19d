"""What a run shows while it lasts: progress bars on the terminal, curves and pictures in Weights & Biases."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from training.config import Config
from training.schedule import Progress

if TYPE_CHECKING:
    from torch import Tensor

_AVERAGED_STEPS = 50
_LINE_EVERY_STEPS = 200


class Terminal:
    """Bars on a terminal; where the output is a file, a line now and then instead."""

    def __init__(self, config: Config, console: Console) -> None:
        self.config, self.console = config, console
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._bars = Bars(*columns, TimeRemainingColumn(), console=console, disable=not console.is_terminal)
        self._task = self._bars.add_task("Training", total=1000, visible=False)
        self._losses: deque[float] = deque(maxlen=_AVERAGED_STEPS)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def show(self, items: Iterable[Any], label: str, total: int) -> Iterator[Any]:
        """Pass the items on under a bar of their own (a `pixels.ShowProgress`)."""
        if not self.console.is_terminal:
            self.say(f"{label}: {total}")
        task = self._bars.add_task(label, total=total)
        for item in items:
            yield item
            self._bars.advance(task)
        self._bars.remove_task(task)

    def say(self, line: str) -> None:
        """Print a line above the bars."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def samples(self, progress: Progress, images: Tensor) -> None:
        """See `loop.Watcher`: nothing is shown."""

    def step(self, progress: Progress, fraction: float, loss: float, rate: float) -> None:
        """See `loop.Watcher`."""
        self._losses.append(loss)
        stage = self.config.stages[progress.stage]
        text = f"{stage.resolution} px, epoch {progress.epoch + 1}, loss {_mean(self._losses):.3f}, rate {rate:.1e}"
        self._bars.update(self._task, completed=round(1000 * fraction), description=text, visible=True)
        if not self.console.is_terminal and progress.step % _LINE_EVERY_STEPS == 0:
            self.say(f"step {progress.step} ({fraction:.1%}): {text}")

    def look(self, entry: dict[str, Any]) -> None:
        """See `loop.Watcher`."""
        self.say(
            f"stage {entry['stage'] + 1} ({entry['resolution']} px), epoch {entry['epoch']:g}: validation loss "
            f"{entry['val_loss']:.4f}, melanoma ROC-AUC {_text(entry['val_auc'])} on {entry['val_images']} images"
        )


class WeightsAndBiases:
    """Curves, and what the network is shown, in wandb; nothing leaves the machine unless it says `wandb="online"`.

    It begins with the first step, so that a run that is refused leaves nothing behind. A resumed run is a second part
    in the same group, for an offline part cannot be written on.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self.config, self.folder = config, folder

    @cached_property
    def _run(self) -> Any:
        import wandb  # imported only where it is wanted: it takes a second and starts a process

        return wandb.init(
            project="dermserve",
            name=self.folder.name,
            group=self.folder.name,
            dir=str(self.folder),
            mode=self.config.wandb,
            config=self.config.model_dump(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if "_run" in self.__dict__:
            self._run.finish(exit_code=0 if kind is None else 1)

    def samples(self, progress: Progress, images: Tensor) -> None:
        """See `loop.Watcher`: one picture of `wandb_images` training images as the network gets them."""
        if count := self.config.wandb_images:
            import wandb
            from torchvision.utils import make_grid

            some = images[:count]
            grid = make_grid(some, nrow=math.ceil(math.sqrt(len(some))), pad_value=255)
            picture = wandb.Image(grid.permute(1, 2, 0).numpy(), caption=f"stage {progress.stage + 1}")
            self._run.log({"train/images": picture}, step=progress.step)

    def step(self, progress: Progress, fraction: float, loss: float, rate: float) -> None:
        """See `loop.Watcher`."""
        if progress.step % 10 == 0:
            values = {"train/loss": loss, "train/rate": rate, "train/fraction": fraction}
            self._run.log(values, step=progress.step)

    def look(self, entry: dict[str, Any]) -> None:
        """See `loop.Watcher`."""
        names = ("val_loss", "val_auc", "train_loss", "resolution", "epoch")
        self._run.log({f"validation/{name}": entry[name] for name in names}, step=entry["step"])


class Both:
    """Tells several watchers in turn."""

    def __init__(self, *watchers: Terminal | WeightsAndBiases) -> None:
        self.watchers = watchers

    def samples(self, progress: Progress, images: Tensor) -> None:
        """See `loop.Watcher`."""
        for watcher in self.watchers:
            watcher.samples(progress, images)

    def step(self, progress: Progress, fraction: float, loss: float, rate: float) -> None:
        """See `loop.Watcher`."""
        for watcher in self.watchers:
            watcher.step(progress, fraction, loss, rate)

    def look(self, entry: dict[str, Any]) -> None:
        """See `loop.Watcher`."""
        for watcher in self.watchers:
            watcher.look(entry)


def _mean(values: deque[float]) -> float:
    return sum(values) / len(values)


def _text(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.4f}"
