"""VMAF through the FFmpeg that the optional package ``imageio-ffmpeg`` carries."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import tempfile
from pathlib import Path
from typing import IO, ClassVar

import torch
from torch import Tensor

from semcast.errors import SemcastError
from semcast.metrics.base import Metric


def find_ffmpeg() -> tuple[str | None, str]:
    """(path of an ffmpeg with libvmaf, "") or (None, why there is none)."""
    if importlib.util.find_spec("imageio_ffmpeg") is None:
        return None, "imageio-ffmpeg is not installed; pip install 'semcast[vmaf]'"
    import imageio_ffmpeg

    try:
        path = str(imageio_ffmpeg.get_ffmpeg_exe())
        filters = subprocess.run([path, "-hide_banner", "-filters"], capture_output=True, text=True, check=True).stdout
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        return None, f"imageio-ffmpeg has no working ffmpeg here ({error})"
    return (path, "") if " libvmaf " in filters else (None, f"{path} is built without libvmaf")


class Vmaf(Metric):
    """VMAF of the clip; frames stream into one FFmpeg process, so memory stays constant. ``clip`` brings values per frame."""

    convention: ClassVar[str] = (
        "libvmaf's default model vmaf_v0.6.1 on limited-range BT.601 luma at the clip's own size (no upscaling to 1080p), "
        "0 to 100; a clip is the mean over frames"
    )

    def __init__(self) -> None:
        super().__init__()
        self.ffmpeg, reason = find_ffmpeg()
        self.unavailable = reason or None
        self._process: subprocess.Popen[bytes] | None = None
        self._errors: IO[bytes] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def _open(self, height: int, width: int) -> subprocess.Popen[bytes]:
        assert self.ffmpeg is not None
        self._folder = tempfile.TemporaryDirectory(prefix="semcast-vmaf-")
        self._errors = (Path(self._folder.name) / "stderr.txt").open("w+b")
        # Reference and received travel as one picture, one above the other: two pipes could wait for each other for ever.
        luma = "scale=out_color_matrix=bt601:out_range=tv,format=yuv444p"
        graph = (
            f"[0:v]split[a][b];[a]crop={width}:{height}:0:0,{luma}[reference];[b]crop={width}:{height}:0:{height},{luma}[received];"
            "[received][reference]libvmaf=log_fmt=json:log_path=vmaf.json:n_threads=1"
        )
        arguments = ["-v", "error", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{2 * height}", "-i", "-"]
        return subprocess.Popen(
            [self.ffmpeg, *arguments, "-lavfi", graph, "-f", "null", "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            cwd=self._folder.name,
        )

    @torch.no_grad()
    def update(self, reference: Tensor, received: Tensor) -> None:
        """Send (t, 3, H, W) frames in [0, 1], rounded to 8 bits, to FFmpeg."""
        if self.unavailable:
            return
        if self._process is None:
            self.values = []
            self._process = self._open(reference.shape[2], reference.shape[3])
        pairs = torch.cat([reference, received], 2).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pairs.contiguous().cpu().numpy().tobytes())
        except BrokenPipeError as error:
            raise SemcastError(f"FFmpeg stopped while measuring VMAF: {self._last_words()}") from error

    def _last_words(self) -> str:
        if self._errors is None:
            return ""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace").strip()[-300:]

    def clip(self) -> float | None:
        """Mean over frames, or None; ends the FFmpeg process, so a later ``update`` starts anew.

        Raises:
            SemcastError: FFmpeg failed.
        """
        if self._process is not None and self._process.stdin is not None and self._folder is not None:
            self._process.stdin.close()
            if self._process.wait() != 0:
                raise SemcastError(f"FFmpeg failed to measure VMAF: {self._last_words()}")
            log = json.loads((Path(self._folder.name) / "vmaf.json").read_text())
            self.values = [float(frame["metrics"]["vmaf"]) for frame in log["frames"]]
            self.close()
        return super().clip()

    def close(self) -> None:
        """End FFmpeg and remove its folder."""
        if self._process is not None:
            if self._process.stdin is not None and not self._process.stdin.closed:
                self._process.stdin.close()
            self._process.kill()
            self._process.wait()
        if self._errors is not None:
            self._errors.close()
        if self._folder is not None:
            self._folder.cleanup()
        self._process = self._errors = self._folder = None
