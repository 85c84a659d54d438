"""
Serves a page that classifies recordings and shows why: `python app.py MODEL [MODEL ...]`, folders or Hub names.

A Space of the Hub reads the models from the variable MODELS (names separated by spaces), or from app.yaml.
`python -m hub push-space` publishes it.
"""

import base64
import copy
import html
import io
import os
import re
import socket
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio
import matplotlib
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from transformers.utils import logging

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.base.event_detection import (
    event_scores,
    event_settings,
    event_thresholds,
    find_events,
    has_event_settings,
)
from training.base.figures import plain
from training.base.finite import OVERFLOW
from training.base.inference import labels_of, load_classifier
from training.console import run_program
from training.data.audio import audio_seconds, read_audio
from training.data.events import FORMATS, Event, write_events
from training.data.text_tables import read_rows
from training.data.uploads import MAX_MB, check_size, readable_s
from training.errors import InputError, blamed, one_line, printable, short
from training.explain import draw_overlay, draw_spectrogram, explain, has_patches
from training.inference import precision
from training.inference.overlaps import classify_frames
from training.recipe import described, parse_program

logger = logging.get_logger(__name__)

USAGE = "app.py MODEL [MODEL ...] [--key value ...]"
HERE = Path(__file__).parent
SETTINGS = HERE / "app.yaml"
TOP = 5  # classes
MOST_EXAMPLES = 8  # clips of the models' own test splits
MOST_ROWS = 200  # events that the page shows; the downloads hold all
DOWNLOADS = {"raven": "Raven", "audacity": "Audacity", "csv": "CSV", "json": "JSON"}
MAX_S = 120.0  # analysed seconds of a recording
SILENCE = 1e-4  # -80 dB of full scale
MULTI = "multi_label_classification"
QUEUE = 32  # visitors that may wait; one is served at a time
KEPT_S = 3600  # seconds that recordings stay on the server's disk, at most twice as long
# Placeholder colours in the pictures; the page replaces them by its theme's.
TEXT, ACCENT = "#010203", "#040506"
STYLE = {
    "svg.fonttype": "none",  # text stays text
    "font.size": 10,
    **{f"{name}.color": TEXT for name in ("text", "xtick", "ytick")},
    "axes.labelcolor": TEXT,
    "axes.edgecolor": TEXT,
    "axes.linewidth": 0.5,
}
CSS = """
.results { display: grid; gap: 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.results section { min-width: 0; }
.results h2 { font-size: 1rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
.results h3 { font-size: 1rem; font-weight: 600; margin: 1.5rem 0 0; }
.results p, .results figcaption { color: var(--body-text-color-subdued); margin: 0.25rem 0; }
.results p.answer { color: var(--body-text-color); font-size: 2rem; font-weight: 600; line-height: 1.3;
  overflow-wrap: anywhere; }
.results p.note:empty { display: none; }
.results p.note { border-left: 4px solid var(--color-accent); color: var(--body-text-color); padding-left: 0.75rem; }
.results a { border: 1px solid var(--border-color-primary); border-radius: 0.3rem; color: var(--body-text-color);
  display: inline-block; margin: 0.25rem 0.5rem 0.25rem 0; padding: 0.1rem 0.6rem; }
.results a:hover, .results a:focus { border-color: var(--color-accent); }
.results table { border: 0; border-collapse: collapse; margin: 0.5rem 0; max-width: 44rem; width: 100%; }
.results tr, .results th, .results td { border: 0 !important; }
.results th, .results td { font-weight: inherit; padding: 0.2rem 0 0.2rem 1rem; text-align: right; }
.results td { font-variant-numeric: tabular-nums; white-space: nowrap; }
.results th.name { min-width: 4rem; overflow-wrap: anywhere; padding-left: 0; text-align: left; }
.results td.meter { min-width: 3rem; width: 50%; }
.results thead { color: var(--body-text-color-subdued); }
.results tr.chosen { font-weight: 600; }
.results .events { max-height: 20rem; max-width: 44rem; overflow: auto; }
.results .bar { background: var(--border-color-primary); border-radius: 0.3rem; height: 0.8rem; position: relative; }
.results .bar i { background: var(--color-accent); border-radius: 0.3rem; display: block; height: 100%; }
.results .bar b { background: var(--body-text-color); height: 1.2rem; position: absolute; top: -0.2rem; width: 2px; }
#clip time, #clip button:not(.selected) { color: var(--body-text-color-subdued); }
.results .pictures { display: grid; gap: 0.5rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); max-width: 72rem; }
.results .pictures > * { margin: 0.5rem 0 0; }
.results .pictures h3:first-child { margin: 0; }
.results figure { margin: 0; max-width: 44rem; }
.results svg { color: var(--body-text-color); display: block; height: auto; max-width: 100%; width: 100%; }
.results svg text { font-family: inherit !important; }
"""
# Gradio would show its own words for a few seconds, and then "Error".
REFUSE_LARGE = f"""() => {{
  const line = document.getElementById("too-large");
  const check = (event) => {{
    line.textContent = "";
    const files = event.type === "click" ? [] : event.target.files ?? event.dataTransfer?.files ?? [];
    const large = [...files].find((file) => file.size > {MAX_MB} * 2 ** 20);
    if (!large) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const size = (large.size / 2 ** 20).toFixed(1);
    line.textContent = `${{large.name}}: has ${{size}} MB, more than {MAX_MB}; cut it or convert it to FLAC`;
  }};
  for (const name of ["change", "drop", "click"]) document.addEventListener(name, check, true);
}}"""
LEGEND = (
    "The answer is computed from the layers below. A brighter patch is more relevant for {name} (Grad-CAM), or gets "
    "more of the layer's attention."
)


@dataclass
class Classifier:
    """
    Holds a loaded model, its feature extractor, and the name that the page shows.

    explained: the model whose maps are drawn, in float32; `None`: the same
    """

    title: str
    model: torch.nn.Module
    extractor: object
    explained: torch.nn.Module | None = None

    @property
    def of_frames(self) -> bool:
        return "FrameClassification" in type(self.model).__name__


@dataclass
class PageArguments(precision.HardwareArguments):
    """Defines the options of app.py."""

    models: list[str] | None = described(
        None, "Folders or Hub names of classifiers; the first words. Unset: the variable MODELS, or app.yaml."
    )
    host: str | None = described(
        None,
        "Address to listen on; 0.0.0.0: all of this machine's. Unset: the variable GRADIO_SERVER_NAME, or 127.0.0.1.",
    )
    port: int | None = described(None, "Port to listen on; unset: a free one from 7860 on.", at_least=1, at_most=65535)
    share: bool = described(
        False, "Also open a public address at gradio.live; recordings then go through Gradio's server."
    )
    dtype: str = described(
        "float32",
        "Number format of the weights; auto: that of predict_hf.py. The maps come from float32 in any case.",
        choices=precision.FORMATS,
    )

    def __post_init__(self):
        super().__post_init__()
        self.host = self.host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"

    @property
    def is_private(self) -> bool:
        """Whether only this machine can open the page."""
        return not self.share and self.host in ("127.0.0.1", "::1", "localhost")


def main(argv: list[str]) -> int:
    return run_program(serve, argv, "the page is closed")


def serve(argv: list[str]):
    """Loads the models and serves the page until Ctrl-C."""
    arguments = parse_program(argv, PageArguments, USAGE, "models")
    settings = read_settings(SETTINGS)
    names = arguments.models or os.environ.get("MODELS", "").split() or settings.get("models", [])
    if not names:
        raise InputError("no model: name folders or Hub models, as in python app.py runs/quickstart")
    with blamed(f"host {arguments.host}, port {arguments.port or 'any'}", "name another --host or --port"):
        family = socket.AF_INET6 if ":" in arguments.host else socket.AF_INET
        socket.create_server((arguments.host, arguments.port or 0), family=family).close()
    hardware = precision.choose_hardware(arguments)
    classifiers = [load(name, title, hardware) for name, title in titles(names)]
    # The clips of a run are its owner's: others get those of app.yaml.
    examples = test_clips(names) if arguments.is_private else {}
    examples = examples or {HERE / name: Path(name).stem for name in settings.get("examples", [])}
    build(classifiers, examples).launch(
        server_name=arguments.host,
        server_port=arguments.port,
        share=arguments.share,
        prevent_thread_lock=True,  # Gradio's own wait hides Ctrl-C
        **launch_settings(),
    )
    while True:
        time.sleep(1)


def load(name: str, title: str, hardware: precision.Hardware) -> Classifier:
    """Loads a model, and keeps a copy in float32 for the maps if it gets another number format or is compiled."""
    # The maps need the weights of the attention.
    model, extractor = load_classifier(name, of_frames=True, attn_implementation="eager")
    classifier = Classifier(title, model, extractor)
    # Half precision would blur gradients and attention, and a compiled network would be compiled again for them.
    if not classifier.of_frames and has_patches(model) and (hardware.dtype != torch.float32 or hardware.is_compiled):
        classifier.explained = copy.deepcopy(model).to(hardware.device)
    classifier.model = precision.place(model, hardware)
    return classifier


def read_settings(path: Path) -> dict:
    """Reads `models` (names) and `examples` (files beside app.yaml); returns {} without the file."""
    if not path.exists():
        return {}
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not valid YAML ({one_line(error)}); correct it") from error
    for name, values in (settings if isinstance(settings, dict) else {"": settings}).items():
        if (
            name not in ("models", "examples")
            or not isinstance(values, list)
            or not all(isinstance(v, str) for v in values)
        ):
            raise InputError(f"{path}: {name!r} is {values!r}; expected the lists models and examples")
    return settings


def titles(names: list[str]) -> list[tuple[str, str]]:
    """Returns (name, title) of models: a folder's title is its last part, unless two share it."""
    short = [Path(name).resolve().name if Path(name).is_dir() else name for name in names]
    return [(name, title if short.count(title) == 1 else name) for name, title in zip(names, short)]


def test_clips(names: list[str]) -> dict[Path, str]:
    """
    Returns clips of the test splits that runs were evaluated on: file -> its name and label, one of each class first.

    Segments of recordings and files that are no longer there, or cannot be read, are left out.

    Args:
        names: folders of runs; others, such as names on the Hub, have no clips here
    """
    by_label = defaultdict(dict)
    for table in (Path(name, "predictions.csv") for name in names):
        if not table.is_file():
            continue
        try:
            columns, rows, _ = read_rows(table, ",")
        except InputError as error:
            logger.warning(f"{one_line(error)} (its clips are no examples)")
            continue
        if not {"file", "label"} <= {*columns}:
            continue
        file, label = columns.index("file"), columns.index("label")
        for row in rows:
            by_label[row[label]][Path(row[file]).absolute()] = f"{Path(row[file]).stem} ({row[label]})"
    found = {}
    for clips in zip_longest(*(clips.items() for clips in by_label.values())):
        for path, title in filter(None, clips):
            if len(found) < MOST_EXAMPLES and is_readable(path):
                found[path] = title
    return found


def is_readable(path: Path) -> bool:
    """Returns whether the page can read a file."""
    try:
        check_size(path.name, path.stat().st_size, MAX_MB)
        return audio_seconds(str(path)) > 0
    except (InputError, OSError, ValueError):
        return False


def build(classifiers: list[Classifier], examples: dict[Path, str]) -> gradio.Blocks:
    """Builds the page. examples: file -> what its button shows"""
    by_title = {classifier.title: classifier for classifier in classifiers}
    examples = {
        path: printable(short(title, 60)).replace("_", " ") for path, title in examples.items() if path.is_file()
    }
    # Otherwise Gradio would serve copies, and delete them together with the recordings.
    gradio.set_static_paths(sorted(map(str, examples)))

    def show(path: str | None, chosen: list[str]) -> str:
        try:
            return results(path, [by_title[title] for title in dict.fromkeys(chosen)])
        except InputError as error:
            return f'<div class="results"><p class="note" role="alert">{as_html(str(error))}</p></div>'

    with gradio.Blocks(title="Audio classification", delete_cache=(KEPT_S, KEPT_S)).queue(max_size=QUEUE) as page:
        gradio.Markdown(introduction(classifiers))
        with gradio.Row():
            with gradio.Column():
                # Type filepath: other types need ffmpeg. The browser records wav files.
                clip = gradio.Audio(
                    label="Clip", sources=["upload", "microphone"], type="filepath", buttons=[], elem_id="clip"
                )
            with gradio.Column():
                if examples:
                    gradio.Examples([[str(path)] for path in examples], clip, example_labels=[*examples.values()])
                chosen = gradio.CheckboxGroup(
                    list(by_title), value=list(by_title), label="Models", visible=len(classifiers) > 1
                )
        gradio.HTML('<div class="results"><p class="note" id="too-large" role="alert"></p></div>')
        answer = gradio.HTML()
        gradio.on(
            [clip.change, chosen.change],
            show,
            [clip, chosen],
            answer,
            api_name="classify",
            trigger_mode="always_last",
            show_progress="full",
        )
    return page


def launch_settings() -> dict:
    """Returns the settings of the page: its look, its limits, and nothing fetched from other hosts."""
    theme = gradio.themes.Default(
        font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"], primary_hue="blue"
    ).set(body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400")
    return {
        "theme": theme,
        "css": CSS,
        "js": REFUSE_LARGE,
        "footer_links": ["gradio"],
        "max_file_size": f"{MAX_MB}mb",
        "run_history": False,
        "ssr_mode": False,
    }


def introduction(classifiers: list[Classifier]) -> str:
    """Returns the title and the text above the page, in Markdown."""
    names = ", ".join(
        f"`{c.title}`"
        if Path(c.title).exists() or "/" not in c.title
        else f"[{c.title}](https://huggingface.co/{c.title})"
        for c in classifiers
    )
    return (
        "# What is in this recording?\n\n"
        f"Record, upload or pick a clip for {names}, and see the answer and what it is based on. "
        f"WAV, FLAC, MP3, Ogg and Opus, up to {MAX_MB} MB; the first {MAX_S:g} seconds of "
        "a recording are analysed. Clips are deleted within two hours."
    )


def results(path: str | None, classifiers: list[Classifier]) -> str:
    """
    Classifies a file; returns the results as HTML, or an empty text without a file.

    Raises:
        InputError: no model is chosen, or the file is silent or cannot be decoded.
    """
    if path is None:
        return ""
    if not classifiers:
        raise InputError("no model is chosen; choose at least one")
    name = Path(path).name
    try:
        with matplotlib.rc_context(STYLE):
            parts = [section(c, *read_clip(path, c.extractor.sampling_rate), name) for c in classifiers]
    except InputError as error:
        raise InputError(one_line(str(error).replace(path, name))) from None
    except Exception as error:  # the server's log has the traceback, the visitor an answer
        logger.error(f"{name}: could not be analysed", exc_info=True)
        raise InputError(
            f"{name}: could not be analysed ({type(error).__name__}); convert it to WAV and try again"
        ) from error
    return f'<div class="results">{"".join(parts)}</div>'


def read_clip(path: str, rate: int) -> tuple[np.ndarray, float]:
    """
    Reads the beginning of a file: float32 (samples,) at `rate` Hz, and the seconds of the whole file.

    Raises:
        InputError: it is too large, cannot be decoded, or is silent.
    """
    check_size(path, os.path.getsize(path), MAX_MB)  # files that the server fetches itself have no limit in Gradio
    seconds, limit_s = audio_seconds(path), readable_s(path, MAX_S)
    source = path if seconds <= limit_s else {"path": path, "start": 0.0, "end": limit_s}
    waveform = read_audio(source, rate)
    if np.abs(waveform).max() < SILENCE:
        raise InputError(f"{path}: holds only silence; check the microphone, or choose another clip")
    return waveform, seconds


def section(classifier: Classifier, waveform: np.ndarray, seconds: float, file: str) -> str:
    """Returns the part of the page about one model. waveform: (samples,); seconds: duration of the file"""
    model, extractor, of_frames = classifier.model, classifier.extractor, classifier.of_frames
    rate, names = extractor.sampling_rate, model.config.id2label
    logits, starts_s, ends_s = rows_of(classifier, waveform)
    if not torch.isfinite(logits).all():
        raise InputError(OVERFLOW)
    scores, mean = model.probabilities(logits).numpy(), model.probabilities(logits.mean(dim=0)).numpy()
    answer = as_list(model.predict_labels(logits.mean(dim=0, keepdim=True))[0])
    is_number, analysed_s = isinstance((answer or [""])[0], float), len(waveform) / rate
    is_long = len(scores) > 1 or of_frames
    # A rare call would drown in the mean: the classes of a long clip are those of its strongest windows.
    highest = mean if is_number else scores.max(axis=0)
    best = np.argsort(-highest, kind="stable")[:TOP]
    strongest = int(scores[:, best[0]].argmax())
    parts, events = [f"<h2>{as_html(classifier.title)}</h2>"], []
    if is_long and not is_number:
        labels = labels_of(classifier.title, model.config)
        settings = event_settings(model.config)
        events = find_events(event_scores(scores, labels), labels.names, starts_s, ends_s, **settings)
        found = dict.fromkeys(event.label for event in sorted(events, key=lambda event: -event.score))
        answer = list(found)
        answer = answer or ([] if of_frames else as_list(model.predict_labels(logits[strongest, None])[0]))
    parts.append(answer_html(answer, is_number))
    if is_long and not is_number:
        top, kind, digits = int(mean.argmax()), "frame" if of_frames else "window", 2 if of_frames else 1
        text = (
            f"Strongest {kind}: <b>{as_html(names[int(best[0])])}</b>, {100 * highest[best[0]]:.1f} % at "
            f"{starts_s[strongest]:.{digits}f} to {ends_s[strongest]:.{digits}f} s."
        )
        if not of_frames:
            text += f" Mean of {len(scores)} windows: <b>{as_html(names[top])}</b>, {100 * mean[top]:.1f} %."
        parts.append(f"<p>{text}</p>")
    note = length_text(analysed_s, seconds, starts_s, ends_s, of_frames)
    parts.append(f"<p{' class=note' if seconds - analysed_s > 0.1 else ''}>{note}</p>")
    titles = [names[int(index)] for index in best]
    limits = event_thresholds(model.config)[best] if model.config.problem_type == MULTI else None
    left = right = ""
    if not is_number:
        columns = {"Highest" if is_long else "Score": highest[best]}
        columns |= {"Mean": mean[best]} if is_long and not of_frames else {}
        left = table_of_scores(titles, columns, answer, limits)
    if is_long:
        drawing = timeline((starts_s + ends_s) / 2, scores[:, best], titles, analysed_s, is_number, limits, events)
        caption = "Output of each time frame" if of_frames else "Output of each window, at its middle"
        caption += "; a bar above is an event" if events else ""
        right = f"<div><h3>Over time</h3>{picture(drawing, caption)}</div>"
        has_own = has_event_settings(model.config)
        left += "" if is_number else events_html(events, file, rate, "time frame" if of_frames else "window", has_own)
    parts.append(f'<div class="pictures"><div>{left}</div>{right}</div>')
    window, _ = window_and_hop(model.base_model, extractor)
    start = round(float(starts_s[strongest]) * rate)
    if of_frames:  # what the model has seen around it
        start = max(min(start - window // 2, len(waveform) - window), 0)
    parts.append(looked_at(classifier, waveform[start : start + window], int(best[0]), start / rate, is_long))
    return f"<section>{''.join(parts)}</section>"


def rows_of(classifier: Classifier, waveform: np.ndarray) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Returns the logits of windows or time frames (rows, labels), and where they begin and end, in seconds."""
    model, extractor = classifier.model, classifier.extractor
    if classifier.of_frames:
        frames, rate = classify_frames(model, extractor, waveform), extractor.sampling_rate
        return torch.from_numpy(frames["logits"]), frames["start"] / rate, frames["stop"] / rate
    windows = model.classify_windows(waveform, extractor, sampling_rate=extractor.sampling_rate, average=False)
    return windows.logits.float().cpu(), windows.start_s.numpy(), windows.end_s.numpy()


def as_list(answer) -> list:
    return answer if isinstance(answer, list) else [answer]


def answer_html(answer: list, is_number: bool) -> str:
    """Formats classes or numbers."""
    text = ", ".join(f"{part:.4g}" if is_number else part for part in answer[:TOP]) or "none of the classes"
    more = f" and {len(answer) - TOP} more" if len(answer) > TOP else ""
    return f'<p class="answer" role="status">{as_html(text + more)}</p>'


def as_html(text: str) -> str:
    """Returns a text as HTML that shows it letter by letter."""
    return html.escape(printable(text))


def table_of_scores(names: list[str], columns: dict[str, np.ndarray], answer: list, limits: np.ndarray | None) -> str:
    """
    Draws the likeliest classes, with a line at the threshold of a multi-label model.

    Args:
        columns: name -> scores, (names,); bars show the first
        limits: thresholds, (names,)
    """
    rows = []
    for place, name in enumerate(names):
        scores = [100 * column[place] for column in columns.values()]
        limit = "" if limits is None else f'<b style="left: {100 * limits[place]:.1f}%"></b>'
        rows.append(
            f"<tr{' class=chosen' if name in answer else ''}><th class=name scope=row>{as_html(name)}</th>"
            f'<td class=meter aria-hidden=true><div class=bar><i style="width: {scores[0]:.1f}%"></i>{limit}</div></td>'
            f"{''.join(f'<td>{score:.1f} %</td>' for score in scores)}</tr>"
        )
    note = "" if limits is None else "<p>Labels above their threshold (the line) are predicted.</p>"
    head = "".join(f"<th scope=col>{name}</th>" for name in columns)
    return (
        f'<table><thead><tr><th class=name scope=col>Class</th><td aria-hidden="true"></td>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{note}"
    )


def length_text(analysed_s: float, seconds: float, starts_s: np.ndarray, ends_s: np.ndarray, of_frames: bool) -> str:
    """Describes which part of a file was analysed, why not all of it, and in how many windows or time frames."""
    text = f"{analysed_s:.{2 if analysed_s < 10 else 1}f} s were analysed"
    if of_frames:
        text += f", in {len(starts_s)} time frames of {1000 * float(np.median(ends_s - starts_s)):.0f} ms"
    elif len(starts_s) > 1:
        text += f", in {len(starts_s)} windows of {float(ends_s[0] - starts_s[0]):.1f} s"
    if seconds - analysed_s <= 0.1:
        return f"{text}."
    whole = f"{seconds:.1f} s" if seconds < 600 else f"{seconds / 60:.0f} min"
    return (
        f"This recording is too long for the page: of {whole} only the first {text}. Cut out another part with the "
        "scissors, or classify all of it with predict_hf.py."
    )


def events_html(events: list[Event], file: str, rate: int, kind: str, has_own: bool) -> str:
    """
    Returns the events as a table, with files of them to download.

    Args:
        file: name of the recording
        kind: what has a score, a window or a time frame
        has_own: the model has settings for its events
    """
    if not events:
        what = "Nothing is an event by the model's own settings." if has_own else ""
        return f"<h3>Events</h3><p>{what or f'No class is above its threshold in any {kind}.'}</p>"
    joined = "joined where they overlap" if kind == "window" else "joined where they touch"
    rule = f"{kind.capitalize()}s above the threshold, {joined}."
    if has_own:
        rule = "By the model's own settings: median filter, thresholds, shortest event and gap."
    rows = "".join(
        f"<tr><th class=name scope=row>{as_html(event.label)}</th><td>{event.onset_s:.2f} s</td>"
        f"<td>{event.offset_s:.2f} s</td><td>{100 * event.score:.1f} %</td></tr>"
        for event in events[:MOST_ROWS]
    )
    links, name = [], Path(file).stem
    with tempfile.TemporaryDirectory() as folder:
        for kind, title in DOWNLOADS.items():
            path = Path(folder, f"events{FORMATS[kind].suffix}")
            try:
                write_events(path, {file: events}, kind, highest_hz=rate / 2)
            except InputError:  # names with characters that only JSON can hold
                continue
            content = base64.b64encode(path.read_bytes()).decode()
            ending = FORMATS[kind].own_suffix
            links.append(f'<a download="{as_html(name)}{ending}" href="data:text/plain;base64,{content}">{title}</a>')
    more = f"<p>The first {MOST_ROWS} of {len(events)} are shown.</p>" if len(events) > MOST_ROWS else ""
    return (
        f"<h3>Events</h3><p>{rule}</p>"
        '<div class="events" role="region" aria-label="Events" tabindex="0"><table><thead><tr>'
        "<th class=name scope=col>Class</th><th scope=col>Start</th><th scope=col>End</th><th scope=col>Highest</th>"
        f"</tr></thead><tbody>{rows}</tbody></table></div>{more}<p>Download {''.join(links)}</p>"
    )


def looked_at(classifier: Classifier, waveform: np.ndarray, label: int, start_s: float, is_part: bool) -> str:
    """Returns the pictures of one window: spectrogram, relevance and attention. waveform: (samples,)"""
    model, extractor = classifier.model, classifier.extractor
    features = extractor([torch.from_numpy(waveform)], extractor.sampling_rate, return_tensors="pt")
    spectrogram = features["input_values"][0].mT.numpy()  # (mel, frames)
    where = f", {start_s:.1f} to {start_s + len(waveform) / extractor.sampling_rate:.1f} s" if is_part else ""
    input_picture = picture(heat_map(spectrogram, classifier, start_s), f"Spectrogram{where}")
    if classifier.of_frames:
        return (
            f'<h3>Input</h3><div class="pictures">{input_picture}</div>'
            "<p>This model answers for every time frame; the maps of this page explain answers for whole clips.</p>"
        )
    if not has_patches(model):
        return (
            f'<h3>Input</h3><div class="pictures">{input_picture}</div>'
            "<p>This network is convolutional: it has no patches, so no map can show what the answer is based on.</p>"
        )
    found = explain(classifier.explained or model, features["input_values"].to(model.device), label)
    name = as_html(model.config.id2label[label])
    pictures = [input_picture, f"<div><p>{LEGEND.format(name=f'<b>{name}</b>')}</p></div>"]
    for layer, relevance in found["relevance"].items():
        layer_name = f"layer {layer}" if layer else "the patch embedding"
        maps = {f"Relevance for {name} in {layer_name}": relevance}
        if layer:
            maps[f"Attention of {layer_name}"] = found["attended"][layer]
        pictures += [picture(heat_map(spectrogram, classifier, start_s, maps[title]), title) for title in maps]
    return f'<h3>What the answer is based on</h3><div class="pictures">{"".join(pictures)}</div>'


def heat_map(
    spectrogram: np.ndarray, classifier: Classifier, start_s: float, values: np.ndarray | None = None
) -> Figure:
    """Draws a spectrogram (mel, frames), under a map over its patches (rows, columns) if given."""
    figure = Figure(figsize=(5, 1.9), layout="constrained")
    axes = figure.add_subplot()
    seconds = spectrogram.shape[1] * classifier.extractor.hop_s
    draw_spectrogram(axes, spectrogram, classifier.extractor, cmap="gray")
    if values is not None:
        draw_overlay(axes, values, classifier.model.config, classifier.extractor)
    ticks = [tick for tick in MaxNLocator(6).tick_values(start_s, start_s + seconds) if 0 <= tick - start_s <= seconds]
    axes.set_xticks([tick - start_s for tick in ticks], [f"{tick:.6g}" for tick in ticks])
    return figure


def timeline(
    times: np.ndarray,
    scores: np.ndarray,
    names: list[str],
    seconds: float,
    is_number: bool,
    limits: np.ndarray | None,
    events: list[Event],
) -> Figure:
    """
    Draws a plot per class.

    Args:
        times: (windows,), their middles in seconds
        scores: (windows, names)
        limits: thresholds of a multi-label model, (names,)
        events: bars above the plots of their classes
    """
    figure = Figure(figsize=(5, 0.5 + 0.6 * len(names)), layout="constrained")
    all_axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    # The line continues to both ends with the values of the first and the last window.
    times, scores = np.concatenate([[0.0], times, [seconds]]), np.concatenate([scores[:1], scores, scores[-1:]])
    for place, (axes, name, line) in enumerate(zip(all_axes, names, scores.T)):
        axes.plot(times, line, color=ACCENT, linewidth=1.5)
        axes.set_title(plain(name, 60), loc="left", fontsize=10, pad=5)
        axes.set_xlim(0, seconds)
        if not is_number:
            axes.fill_between(times, line, color=ACCENT, alpha=0.3, linewidth=0)
            axes.set_ylim(0, 1)
        for event in events:
            if event.label == name:
                ends_s = [event.onset_s, event.offset_s]
                axes.plot(ends_s, [1, 1], color=TEXT, linewidth=3, solid_capstyle="butt", clip_on=False)
        if limits is not None:
            axes.axhline(limits[place], color=TEXT, linewidth=0.8, linestyle="dashed")
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("time (s)")
    return figure


def picture(figure: Figure, caption: str) -> str:
    """Returns a drawing as SVG that takes its colours from the page. caption: HTML"""
    content = io.StringIO()
    figure.savefig(content, format="svg", dpi=120, transparent=True, metadata={"Date": None, "Creator": None})
    text = content.getvalue()
    svg = text[text.index("<svg") :].replace(TEXT, "currentColor").replace(ACCENT, "var(--color-accent)")
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids would not be unique: a page has several drawings
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{caption}" ', 1)
    return f"<figure>{svg}<figcaption>{caption}</figcaption></figure>"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
