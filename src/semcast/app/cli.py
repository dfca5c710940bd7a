"""``semcast``: what a user types. Declarations only; the work is in ``semcast.app.commands``, imported when a command runs.

Exit codes: 0 done, 1 a fault of ours, 2 bad input or usage, 130 interrupted.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from semcast.app.options import Common
from semcast.errors import InputError, SemcastError

try:  # newer releases of typer carry click along
    from typer._click import exceptions as usage
except ImportError:
    from click import exceptions as usage  # type: ignore[no-redef]

DEBUG = "SEMCAST_DEBUG"

app = typer.Typer(
    name="semcast",
    help="Send video over a radio, digitally and by deep joint source-channel coding, and see what arrives.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Input = Annotated[
    str, typer.Argument(metavar="INPUT", help="Video file, raw .yuv, folder of pictures, scene:NAME or DATASET:DIR.")
]
SystemName = Annotated[
    str, typer.Option("--system", metavar="NAME", help="System, with :preset where it has several; see `semcast systems`.")
]
Channel = Annotated[
    str, typer.Option("--channel", metavar="SPEC", help="Channel, e.g. rayleigh:block; see `semcast channels`.")
]
Snr = Annotated[str, typer.Option("--snr", metavar="DB", help="Es/N0 per complex symbol in dB.")]
Cbr = Annotated[str, typer.Option("--cbr", metavar="R", help="Channel uses per source value (3HWT), e.g. 0.02 or 1/12.")]
Snrs = Annotated[str, typer.Option("--snr", metavar="LIST", help="Es/N0 per complex symbol in dB, e.g. 0,5,10.")]
Cbrs = Annotated[str, typer.Option("--cbr", metavar="LIST", help="Channel uses per source value (3HWT), e.g. 0.01,0.02,1/12.")]
CsiSnr = Annotated[
    float | None, typer.Option("--csi-snr", metavar="DB", help="SNR that the transmitter is told instead of the true one.")
]
Goal = Annotated[str, typer.Option("--goal", metavar="NAME", help="What the receiver does with the video.")]
Condition = Annotated[str, typer.Option("--condition", metavar="NAME", help="Test condition of the digital systems.")]
Phy = Annotated[
    str, typer.Option("--phy", metavar="fast|exact", help="fast: measured block error tables; exact: the LDPC decoder itself.")
]
Harq = Annotated[int, typer.Option("--harq", metavar="N", min=0, max=16, help="Retransmissions of a block at most.")]
Mcs = Annotated[
    str | None,
    typer.Option("--mcs", metavar="NAME", help="A fixed modulation and coding scheme, e.g. 16qam-2/3; default: adaptive."),
]
Bandwidth = Annotated[float, typer.Option("--bandwidth", metavar="HZ", help="Channel uses per second, for airtime and fading.")]
Power = Annotated[float, typer.Option("--power", metavar="W", help="Transmit power, for the energy.")]
MaxFrames = Annotated[int | None, typer.Option("--max-frames", metavar="N", help="Stop after N frames of each clip.")]
Stills = Annotated[bool, typer.Option("--stills", help="Pictures of a folder are clips of one frame each.")]
Size = Annotated[str | None, typer.Option("--size", metavar="WxH", help="Size of a raw .yuv; anything else is scaled to it.")]
Fps = Annotated[
    float | None, typer.Option("--fps", metavar="F", help="Rate of a raw .yuv or pictures; videos are resampled to it.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed of the noise and of both ends.")]
Json = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the rows as a JSON list.")]
Metrics = Annotated[
    str | None, typer.Option("--metrics", metavar="LIST", help="Metrics, e.g. psnr_rgb_db,vmaf; default: the goal's.")
]
Weights = Annotated[Path | None, typer.Option("--weights", metavar="DIR", help="Checkpoint to use instead of the shipped one.")]
Precision = Annotated[
    str, typer.Option("--precision", metavar="P", help="Arithmetic of networks: auto, bf16, fp32; auto follows the processor.")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, metavar="N", help="Processor threads; same bits need same threads.")
]
AssumedFree = Annotated[bool, typer.Option("--assumed-free", help="Do not charge what a paper gets for free; footnoted.")]
Maps = Annotated[
    str, typer.Option("--maps", metavar="FROM", help="Segmentation maps that are sent along: predicted, or the truth.")
]


def _version(show: bool) -> None:
    if show:
        from semcast import __version__

        typer.echo(f"semcast {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Send video over a radio, digitally and by deep joint source-channel coding, and see what arrives."""


@app.command()
def compare(
    source: Input,
    systems: Annotated[str, typer.Option("--systems", metavar="LIST", help="Systems, e.g. deepjscc,h265-ldpc,linear-jscc.")] = (
        "h265-ldpc,deepjscc,linear-jscc"
    ),
    channel: Annotated[
        list[str], typer.Option("--channel", metavar="SPEC", help="Channel; may be repeated. See `semcast channels`.")
    ] = ["awgn"],  # noqa: B006  typer copies it
    snr: Snrs = "0,5,10,15,20",
    cbr: Cbrs = "0.02",
    report: Annotated[
        Path | None, typer.Option("--report", metavar="DIR", help="Write report.html and rows.jsonl there.")
    ] = None,
    json: Json = None,
    csi_snr: CsiSnr = None,
    seed: Seed = 0,
    seeds: Annotated[int, typer.Option("--seeds", min=1, metavar="N", help="Noise seeds, for confidence intervals.")] = 1,
    goal: Goal = "watch",
    condition: Condition = "strong",
    phy: Phy = "fast",
    harq: Harq = 0,
    mcs: Mcs = None,
    bandwidth: Bandwidth = 1e6,
    power: Power = 1.0,
    max_frames: MaxFrames = None,
    stills: Stills = False,
    size: Size = None,
    fps: Fps = None,
    metrics: Metrics = None,
    weights: Annotated[
        list[Path], typer.Option("--weights", metavar="DIR", help="Checkpoint of one of the systems; may be repeated.")
    ] = [],  # noqa: B006  typer copies it
    precision: Precision = "auto",
    threads: Threads = None,
    assumed_free: AssumedFree = False,
    maps: Maps = "predicted",
) -> None:
    """Hold several systems against each other over the same radio."""
    from semcast.app import commands

    commands.compare(
        Common(source, tuple(channel), snr, cbr, csi_snr, goal, condition, phy, harq, mcs, bandwidth, power, max_frames, stills,
               size, fps, seed, metrics, precision, threads, assumed_free, maps, "compare"),
        systems, seeds, report, json, list(weights),
    )  # fmt: skip


@app.command()
def transmit(
    source: Input,
    output: Annotated[
        Path | None, typer.Argument(metavar="[OUTPUT]", help="Received video (.mp4, .mkv, .y4m); a folder for several clips.")
    ] = None,
    system: SystemName = "deepjscc",
    channel: Channel = "awgn",
    snr: Snr = "10",
    cbr: Cbr = "0.02",
    json: Json = None,
    csi_snr: CsiSnr = None,
    seed: Seed = 0,
    goal: Goal = "watch",
    condition: Condition = "strong",
    phy: Phy = "fast",
    harq: Harq = 0,
    mcs: Mcs = None,
    bandwidth: Bandwidth = 1e6,
    power: Power = 1.0,
    max_frames: MaxFrames = None,
    stills: Stills = False,
    size: Size = None,
    fps: Fps = None,
    metrics: Metrics = None,
    weights: Weights = None,
    precision: Precision = "auto",
    threads: Threads = None,
    assumed_free: AssumedFree = False,
    maps: Maps = "predicted",
) -> None:
    """Send a video with one system and write what arrives."""
    from semcast.app import commands

    commands.transmit(
        Common(source, (channel,), snr, cbr, csi_snr, goal, condition, phy, harq, mcs, bandwidth, power, max_frames, stills,
               size, fps, seed, metrics, precision, threads, assumed_free, maps, "transmit"),
        system, output, json, weights,
    )  # fmt: skip


@app.command()
def send(
    source: Input,
    air: Annotated[Path, typer.Option("--air", metavar="FILE", help="Where to write what crossed the air.")],
    system: SystemName = "deepjscc",
    channel: Channel = "awgn",
    snr: Snr = "10",
    cbr: Cbr = "0.02",
    json: Json = None,
    csi_snr: CsiSnr = None,
    seed: Seed = 0,
    goal: Goal = "watch",
    condition: Condition = "strong",
    phy: Phy = "fast",
    harq: Harq = 0,
    mcs: Mcs = None,
    bandwidth: Bandwidth = 1e6,
    power: Power = 1.0,
    max_frames: MaxFrames = None,
    size: Size = None,
    fps: Fps = None,
    metrics: Metrics = None,
    weights: Weights = None,
    precision: Precision = "auto",
    threads: Threads = None,
    maps: Maps = "predicted",
) -> None:
    """Send a video and write only what crossed the air."""
    from semcast.app import commands

    commands.send(
        Common(source, (channel,), snr, cbr, csi_snr, goal, condition, phy, harq, mcs, bandwidth, power, max_frames, False,
               size, fps, seed, metrics, precision, threads, False, maps, "send"),
        system, air, json, weights,
    )  # fmt: skip


@app.command()
def receive(
    air: Annotated[Path, typer.Argument(metavar="AIR", help="File that `semcast send` wrote.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Received video: .mp4, .mkv or .y4m.")],
    weights: Weights = None,
    lossless: Annotated[bool, typer.Option("--lossless", help="Keep every 8-bit value; .mkv or .mp4.")] = False,
    precision: Precision = "auto",
    threads: Threads = None,
) -> None:
    """Decode a file that `semcast send` wrote, to the same bits."""
    from semcast.app import commands

    commands.receive(air, output, weights, lossless, precision, threads)


@app.command()
def train(
    system: Annotated[str, typer.Argument(metavar="SYSTEM", help="What to train, e.g. deepjscc.")],
    data: Annotated[
        Path, typer.Option("--data", metavar="DIR", help="Folder with video/ and images/, or of clips or pictures.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the run; a run that is there goes on.")],
    preset: Annotated[str | None, typer.Option("--preset", metavar="NAME", help="Preset; default: the system's first.")] = None,
    schedule: Annotated[
        Path | None, typer.Option("--schedule", metavar="FILE", help="Stages as YAML; default: the shipped one.")
    ] = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", metavar="M", help="Stop, resumably, after M minutes.")
    ] = None,
    licence: Annotated[
        str, typer.Option("--licence", metavar="TEXT", help="Licence of the data, for the card.")
    ] = "not stated",
    threads: Threads = None,
) -> None:
    """Train a system, or go on with a run that stopped."""
    from semcast.app import training

    training.train(system, data, out, preset, schedule, max_minutes, licence, threads)


@app.command()
def systems() -> None:
    """List every system, and what its weights were trained on."""
    from semcast.app import show

    show.systems()


@app.command()
def channels() -> None:
    """List every channel with options, units and an example."""
    from semcast.app import show

    show.channels()


def _say(message: str) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def main(args: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, and turns every exception into one sentence on stderr.

    With ``SEMCAST_DEBUG=1`` in the environment exceptions are raised, traceback and all.
    """
    try:
        code = app(args=(sys.argv[1:] if args is None else args) or ["--help"], prog_name="semcast", standalone_mode=False)
        sys.stdout.flush()
        return int(code or 0)
    except usage.ClickException as error:
        where = error.ctx.command_path if isinstance(error, usage.UsageError) and error.ctx is not None else "semcast"
        _say(f"{error.format_message().rstrip('.')}; see `{where} --help`")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `semcast systems | head` is no fault
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        if isinstance(error, InputError):
            _say(str(error))
            return 2
        kind = "" if isinstance(error, SemcastError) else f"{type(error).__name__}: "
        _say(f"a fault of Semcast, not yours: {kind}{error}; set {DEBUG}=1 to see the traceback and report it")
        return 1
