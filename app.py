"""
Serves a page that classifies recordings and shows why: `python app.py MODEL [MODEL ...]`, folders or Hub names.

A Space of the Hub reads the models from the variable MODELS (names separated by spaces), or from app.yaml.
`python -m hub push-space` publishes it.
"""

import argparse
import html
import io
import os
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio
import matplotlib
import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from modeling_dual_ssast.embedding_dual_ssast import window_and_hop
from training.base.figures import plain
from training.base.finite import OVERFLOW
from training.base.inference import load_classifier
from training.console import run_program
from training.data.audio import audio_seconds, read_audio
from training.data.uploads import MAX_MB, check_size, readable_s
from training.errors import InputError, one_line, printable
from training.explain import draw_overlay, draw_spectrogram, explain, has_patches
from training.inference import precision

HERE = Path(__file__).parent
SETTINGS = HERE / "app.yaml"
TOP = 5  # classes
MAX_S = 120.0  # analysed seconds of a recording
SILENCE = 1e-4  # -80 dB of full scale
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
.results ol { align-items: center; display: grid; gap: 0.4rem 0.75rem; grid-template-columns: fit-content(45%) 1fr auto;
  list-style: none; margin: 0.5rem 0; max-width: 44rem; padding: 0; }
.results li { display: contents; }
.results li span { overflow-wrap: anywhere; }
.results li span:last-child { font-variant-numeric: tabular-nums; text-align: right; }
.results li.chosen { font-weight: 600; }
.results .bar { background: var(--border-color-primary); border-radius: 0.3rem; height: 0.8rem; position: relative; }
.results .bar i { background: var(--color-accent); border-radius: 0.3rem; display: block; height: 100%; }
.results .bar b { background: var(--body-text-color); height: 1.2rem; position: absolute; top: -0.2rem; width: 2px; }
.results .pictures { display: grid; gap: 0.5rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); max-width: 72rem; }
.results .pictures > * { margin: 0.5rem 0 0; }
.results figure { margin: 0; max-width: 44rem; }
.results svg { color: var(--body-text-color); display: block; height: auto; max-width: 100%; width: 100%; }
.results svg text { font-family: inherit !important; }
"""
LEGEND = (
    "The answer is computed from the layers below. A brighter patch is more relevant for {name} (Grad-CAM), or gets "
    "more of the layer's attention."
)


@dataclass
class Classifier:
    """Holds a loaded model, its feature extractor, and the name that the page shows."""

    title: str
    model: torch.nn.Module
    extractor: object


def main(argv: list[str]) -> int:
    return run_program(serve, argv, "the page is closed")


def serve(argv: list[str]):
    """Loads the models and serves the page until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="app.py", description="Serves a page that classifies recordings.")
    parser.add_argument("models", nargs="*", metavar="MODEL", help="folder or Hub name of a classifier")
    parser.add_argument("--device", help="such as cpu or cuda:1; unset: the accelerator, if there is one")
    parser.add_argument("--threads", type=int, help="CPU threads of the network; unset: all cores")
    arguments = parser.parse_args(argv)
    names = arguments.models
    settings = read_settings(SETTINGS)
    names = names or os.environ.get("MODELS", "").split() or settings.get("models", [])
    if not names:
        raise InputError("no model: name folders or Hub models, as in python app.py runs/quickstart")
    # The maps come from gradients and from attention, which has to be eager: half precision would blur them.
    hardware = precision.choose_hardware(
        precision.HardwareArguments("float32", arguments.device, threads=arguments.threads)
    )
    classifiers = []
    for name, title in titles(names):
        model, extractor = load_classifier(name, attn_implementation="eager")
        classifiers.append(Classifier(title, precision.place(model, hardware), extractor))
    page = build(classifiers, settings.get("examples", []))
    page.launch(**launch_settings(), prevent_thread_lock=True)  # Gradio's own wait hides Ctrl-C
    while True:
        time.sleep(1)


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


def build(classifiers: list[Classifier], examples: list[str]) -> gradio.Blocks:
    """Builds the page."""
    by_title = {classifier.title: classifier for classifier in classifiers}
    examples = [HERE / name for name in examples if (HERE / name).is_file()]
    # Otherwise Gradio would serve copies, and delete them together with the recordings.
    gradio.set_static_paths(sorted({str(path) for path in examples}))

    def show(path: str | None, chosen: list[str]) -> str:
        return results(path, [by_title[title] for title in dict.fromkeys(chosen)])

    with gradio.Blocks(title="Audio classification", delete_cache=(KEPT_S, KEPT_S)).queue(max_size=QUEUE) as page:
        gradio.Markdown(introduction(classifiers))
        with gradio.Row():
            with gradio.Column():
                # Type filepath: other types need ffmpeg. The browser records wav files.
                clip = gradio.Audio(label="Clip", sources=["upload", "microphone"], type="filepath", buttons=[])
            with gradio.Column():
                if examples:
                    labels = [path.stem.replace("_", " ") for path in examples]
                    gradio.Examples([[str(path)] for path in examples], clip, example_labels=labels)
                chosen = gradio.CheckboxGroup(
                    list(by_title), value=list(by_title), label="Models", visible=len(classifiers) > 1
                )
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
        gradio.Error: no model is chosen, or the file is silent or cannot be decoded; the message is HTML.
    """
    if path is None:
        return ""
    if not classifiers:
        raise gradio.Error("Choose at least one model.")
    try:
        with matplotlib.rc_context(STYLE):
            parts = [section(c, *read_clip(path, c.extractor.sampling_rate)) for c in classifiers]
    except InputError as error:
        message = one_line(str(error).replace(path, Path(path).name))
        raise gradio.Error(html.escape(message), duration=None, print_exception=False) from None
    except Exception as error:  # the server's log has the traceback, the visitor an answer
        message = f"{Path(path).name}: could not be analysed ({type(error).__name__}); convert it to WAV and try again"
        raise gradio.Error(html.escape(message), duration=None) from error
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


def section(classifier: Classifier, waveform: np.ndarray, seconds: float) -> str:
    """Returns the part of the page about one model. waveform: (samples,); seconds: duration of the file"""
    model, extractor = classifier.model, classifier.extractor
    rate = extractor.sampling_rate
    windows = model.classify_windows(waveform, extractor, sampling_rate=rate, average=False)
    logits = windows.logits.float().cpu()  # (windows, labels)
    if not torch.isfinite(logits).all():
        raise InputError(OVERFLOW)
    scores = model.probabilities(logits.mean(dim=0)).numpy()
    answer = model.predict_labels(logits.mean(dim=0, keepdim=True))[0]
    best = np.argsort(-scores, kind="stable")[:TOP]
    names = [model.config.id2label[index] for index in best]
    is_number = any(isinstance(part, float) for part in (answer if isinstance(answer, list) else [answer]))
    parts = [f"<h2>{as_html(classifier.title)}</h2>", answer_html(answer, is_number)]
    if not is_number:
        parts.append(bars(names, scores[best], answer, thresholds(model.config, best)))
    analysed_s = len(waveform) / rate
    parts.append(f"<p>{length_text(analysed_s, seconds, windows)}</p>")
    if len(logits) > 1:
        over_time = model.probabilities(logits).numpy()[:, best]
        times = ((windows.start_s + windows.end_s) / 2).numpy()
        parts.append("<h3>Over time</h3>")
        drawing = timeline(times, over_time, names, analysed_s, is_number)
        parts.append(picture(drawing, "Output of each window, at its middle"))
    strongest = int(logits[:, best[0]].argmax())
    window, _ = window_and_hop(model.base_model, extractor)
    start = round(float(windows.start_s[strongest]) * rate)
    parts.append(looked_at(classifier, waveform[start : start + window], int(best[0]), start / rate, len(logits) > 1))
    return f"<section>{''.join(parts)}</section>"


def answer_html(answer, is_number: bool) -> str:
    """Formats a class, several classes, or numbers."""
    parts = answer if isinstance(answer, list) else [answer]
    text = ", ".join(f"{part:.4g}" if is_number else part for part in parts) or "none of the classes"
    return f'<p class="answer" role="status">{as_html(text)}</p>'


def as_html(text: str) -> str:
    """Returns a text as HTML that shows it letter by letter."""
    return html.escape(printable(text))


def thresholds(config, labels: np.ndarray) -> list[float] | None:
    """Returns the decision thresholds of a multi-label model for these labels; `None` for other models."""
    if config.problem_type != "multi_label_classification":
        return None
    return [0.5 if config.decision_thresholds is None else config.decision_thresholds[label] for label in labels]


def bars(names: list[str], scores: np.ndarray, answer, limits: list[float] | None) -> str:
    """Draws the likeliest classes, with a line at the threshold of a multi-label model. scores: (names,)"""
    chosen = answer if isinstance(answer, list) else [answer]
    rows = []
    for place, (name, score) in enumerate(zip(names, scores)):
        limit = "" if limits is None else f'<b style="left: {100 * limits[place]:.1f}%"></b>'
        rows.append(
            f"<li{' class=chosen' if name in chosen else ''}><span>{as_html(name)}</span>"
            f'<span class="bar" aria-hidden="true"><i style="width: {100 * score:.1f}%"></i>{limit}</span>'
            f"<span>{100 * score:.1f} %</span></li>"
        )
    note = "" if limits is None else "<p>Labels above their threshold (the line) are predicted.</p>"
    return f"<ol>{''.join(rows)}</ol>{note}"


def length_text(analysed_s: float, seconds: float, windows) -> str:
    """Describes which part of a file was analysed, and in how many windows."""
    text = f"{analysed_s:.{2 if analysed_s < 10 else 1}f} s were analysed"
    if seconds - analysed_s > 0.1:
        text = f"Of {seconds:.1f} s the first {text}"
    if len(windows.start_s) > 1:
        window_s = float(windows.end_s[0] - windows.start_s[0])
        text += f", in {len(windows.start_s)} windows of {window_s:.1f} s; the answer is their mean"
    return f"{text}."


def looked_at(classifier: Classifier, waveform: np.ndarray, label: int, start_s: float, is_part: bool) -> str:
    """Returns the pictures of one window: spectrogram, relevance and attention. waveform: (samples,)"""
    model, extractor = classifier.model, classifier.extractor
    features = extractor([torch.from_numpy(waveform)], extractor.sampling_rate, return_tensors="pt")
    spectrogram = features["input_values"][0].mT.numpy()  # (mel, frames)
    where = f", {start_s:.1f} to {start_s + len(waveform) / extractor.sampling_rate:.1f} s" if is_part else ""
    input_picture = picture(heat_map(spectrogram, classifier, start_s), f"Spectrogram{where}")
    if not has_patches(model):
        return (
            f'<h3>Input</h3><div class="pictures">{input_picture}</div>'
            "<p>This network is convolutional: it has no patches, so no map can show what the answer is based on.</p>"
        )
    found = explain(model, features["input_values"].to(model.device), label)
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


def timeline(times: np.ndarray, scores: np.ndarray, names: list[str], seconds: float, is_number: bool) -> Figure:
    """Draws a plot per class. times: (windows,), their middles in seconds; scores: (windows, names)"""
    figure = Figure(figsize=(5, 0.5 + 0.6 * len(names)), layout="constrained")
    all_axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    # The line continues to both ends with the values of the first and the last window.
    times, scores = np.concatenate([[0.0], times, [seconds]]), np.concatenate([scores[:1], scores, scores[-1:]])
    for axes, name, line in zip(all_axes, names, scores.T):
        axes.plot(times, line, color=ACCENT, linewidth=1.5)
        axes.set_title(plain(name, 60), loc="left", fontsize=10, pad=3)
        axes.set_xlim(0, seconds)
        if not is_number:
            axes.fill_between(times, line, color=ACCENT, alpha=0.3, linewidth=0)
            axes.set_ylim(0, 1)
        axes.spines[["top", "right"]].set_visible(False)
    all_axes[-1].set_xlabel("seconds")
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
