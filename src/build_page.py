"""Build the page that segments scans in a browser: one file that works without a network.

    python src/build_page.py .venv/page/build .venv/page/node_modules/onnxruntime-web try.html

`make page` calls it after esbuild has bundled the modules of `src/browser` into the first folder.
The second folder has ONNX Runtime Web. The model is the released one, `models/glioma.onnx`.
"""

import base64
import gzip
import json
import sys
from pathlib import Path

from markupsafe import Markup

sys.path.insert(0, str(Path(__file__).parent))  # needed if PYTHONSAFEPATH is set

from page.rendering import script_json, template_environment
from page.wording import shown_sequences
from pipeline.exits import exit_with_message
from pipeline.outputs import replacing
from pipeline.refusals import Refusal
from scans import sequences
from scans.tiff import SEQUENCES

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = "dist/ort-wasm-simd-threaded.wasm"
WORDS = (
    *("NO_SCAN", "FLAIR", "T1", "T1_CONTRAST", "CONTRAST", "CONTRAST_AFTER_T1", "NO_CONTRAST"),
    "OTHERS",
)


def compressed(path: Path) -> Markup:
    """Return a file compressed with gzip, as base64; the same bytes give the same text."""
    data = gzip.compress(path.read_bytes(), compresslevel=9, mtime=0)
    return Markup(base64.b64encode(data).decode("ascii"))  # noqa: S704


def script(path: Path) -> Markup:
    """Return a script, escaped so that it cannot close its script element."""
    text = path.read_text(encoding="utf-8")
    return Markup(text.replace("</script", "<\\/script").replace("<!--", "<\\!--"))  # noqa: S704


def words() -> dict[str, object]:
    """Return the words by which sequences are recognized, for the page's script."""
    found: dict[str, object] = {name.lower(): sorted(getattr(sequences, name)) for name in WORDS}
    patterns = {"without": sequences.WITHOUT, "bids_entity": sequences.BIDS_ENTITY}
    found["others"] = sorted(sequences.OTHERS | sequences.T2)  # the page knows no T2
    return found | {
        "alone": sequences.ALONE,
        **{name: pattern.pattern for name, pattern in patterns.items()},
    }


def build_page(scripts: Path, runtime: Path, out: Path) -> None:
    """Write the page from the bundled `page.js` and `worker.js`, the runtime and the model."""
    model = ROOT / "models/glioma.onnx"
    needed = [scripts / "page.js", scripts / "worker.js", runtime / RUNTIME, model]
    if missing := [str(path) for path in needed if not path.is_file()]:
        raise Refusal(
            f"missing: {', '.join(missing)}. Delete .venv/page and run make page again, which "
            "creates the scripts and the runtime. Restore the model with `git restore models`."
        )
    description = json.loads(model.with_suffix(".json").read_text(encoding="utf-8"))
    if description["input"]["sequences"] != list(SEQUENCES):
        raise Refusal(f"{model}: the page needs a model whose sequences are {', '.join(SEQUENCES)}")
    license_text = ROOT / "src/browser/onnxruntime-web.LICENSE"
    text = (
        template_environment()
        .get_template("try.html")
        .render(
            description=description,
            **shown_sequences(SEQUENCES),
            names={name: sequences.NAMES[name] for name in ("flair", *sequences.SHORT)},
            description_json=script_json(description),
            words_json=script_json(words()),
            runtime=compressed(runtime / RUNTIME),
            runtime_license=license_text.read_text(encoding="utf-8"),
            model=compressed(model),
            worker_script=script(scripts / "worker.js"),
            page_script=script(scripts / "page.js"),
        )
    )
    with replacing(out) as [partial]:
        partial.write_text(text, encoding="utf-8")
    print(f"Wrote {out} ({out.stat().st_size / 1e6:.1f} MB). Open it in a browser.")


def main(argv: list[str] | None = None) -> None:
    scripts, runtime, out = map(Path, sys.argv[1:] if argv is None else argv)
    with exit_with_message("build_page"):
        build_page(scripts, runtime, out)


if __name__ == "__main__":
    main()
