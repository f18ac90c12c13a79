"""How fast ViT-S/16 and ResNet-50 train on this machine's CPU: bigjax against transformers.

    python benchmarks/vision_cpu.py [--json] [--rounds 5] [--models vit,resnet]

ViT-S/16 on images of 224 pixels and ResNet-50 on images of 128 pixels, batch 8, 1,000 classes,
float32, no dropout; AdamW, gradients clipped to norm 1. Both sides start from the same parameters,
so that the losses of the first two steps have to agree, which is checked. Speeds are images per
second of complete training steps (forward, backward, clipping, update) on a batch that is already
in memory.

Ours is what `bigjax train` runs, on three meshes: its default, a device for each core; the same
with the parameters and their update sharded (mesh.data=1, mesh.fsdp=-1); and one device with XLA's
threads (mesh.data=1). Theirs is ViTForImageClassification (with scaled_dot_product_attention) and
ResNetForImageClassification of transformers on PyTorch, with torch.optim.AdamW, clip_grad_norm_ and
PyTorch's own number of threads, in three forms: eager, eager with images in the layout
channels_last, and torch.compile, which needs a C++ compiler and is skipped without one. The fastest
of each counts; `ratio_default` is of our default. Ours normalises its images in the step, theirs
gets them normalised. All have the allocator's settings of bigjax/cpu.py. Needs
`pip install -e '.[bench]'`.
"""

import argparse
import contextlib
import json
import math
import shutil
import sys
import tempfile

import sides

SIZES = {"vit": 224, "resnet": 128}
BATCH, CLASSES = 8, 1000
LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM = 1e-4, 0.9, 0.999, 0.01, 1.0
FORMS = ("eager", "channels_last", "compiled")
MESHES = {  # of config.mesh
    "ours": {},
    "ours_fsdp": dict(data=1, fsdp=-1),
    "ours_threads": dict(data=1),
}
BARS = {"vit": 1.1, "resnet": 0.9}
TOLERANCES = 1e-4, 2e-3  # of the losses before the first update, and after it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each side")
    parser.add_argument("--models", default=",".join(SIZES), help="of vit, resnet")
    parser.add_argument("--folder", help=argparse.SUPPRESS)  # of the initial parameters
    parser.add_argument("--side", help=argparse.SUPPRESS)  # MODEL.FORM
    args = parser.parse_args()
    if args.side:
        model, form = args.side.split(".")
        side = ours if form in MESHES else theirs
        return side(model, form, args.folder)
    print(sides.load())
    results = {model: _compare(model, args.rounds) for model in args.models.split(",")}
    for model, result in results.items():
        print(
            f"{model} ratio {result['ratio']:.3f} (bar {BARS[model]}), "
            f"{result['ratio_default']:.3f} with our default mesh"
        )
    if args.json:
        first = next(iter(results.values()))
        print(json.dumps({"name": "vision_cpu", **first, "unit": "images/s", "models": results}))


def _compare(model: str, rounds: int) -> dict[str, float]:
    """Images per second of both sides, and their ratio."""
    forms = [form for form in FORMS if form != "compiled" or shutil.which("g++")]
    with tempfile.TemporaryDirectory() as folder:
        sys.argv.append(f"--folder={folder}")  # for the sides
        with contextlib.ExitStack() as stack:
            running = [
                stack.enter_context(sides.Side(f"{model}.{form}")) for form in (*forms, *MESHES)
            ]
            sys.argv.pop()
            _check([side.about for side in running])
            for side in running:
                print(f"{side.name:20s} {side.about['what']}")
            sides.take_turns(running, 1)  # allocators need a few steps to warm up
            seconds = sides.take_turns(running, rounds, warm=True)
    speed = {}
    for name in seconds:
        speed[name], text = sides.speeds(BATCH, seconds[name])
        print(f"{name:20s} {text} images/s")
    best_of = lambda names: max(speed[f"{model}.{name}"] for name in names)
    our_best, their_best = best_of(MESHES), best_of(forms)
    return {
        "ours": our_best,
        "theirs": their_best,
        "ratio": our_best / their_best,
        "ratio_default": best_of(["ours"]) / their_best,
    }


def _check(abouts: list[dict]) -> None:
    """All sides must do the same work."""
    if len({about["parameters"] for about in abouts}) > 1:
        raise SystemExit(f"The models differ: {abouts}")
    for about in abouts:
        for own, first, tolerance in zip(about["losses"], abouts[0]["losses"], TOLERANCES):
            if not math.isclose(own, first, rel_tol=tolerance):
                raise SystemExit(f"The losses of the first two steps differ: {abouts}")


def _examples(model: str):
    """Random images and labels: the speed does not depend on them."""
    import numpy as np

    rng, size = np.random.default_rng(0), SIZES[model]
    images = rng.integers(0, 256, (BATCH, size, size, 3), np.uint8)
    return images, rng.integers(0, CLASSES, BATCH)


def ours(model: str, form: str, folder: str) -> None:
    def batch():
        import numpy as np

        images, labels = _examples(model)
        return {
            "image": images,
            "label": labels.astype(np.int32),
            "example": np.arange(BATCH, dtype=np.int32),
            "weights": np.ones(BATCH, np.float32),
        }

    sides.serve_training(_config(model, form, folder), batch, "")


def _config(model: str, form: str, folder: str):
    """The config that `bigjax train` would get, with what `theirs` saved as its initial
    parameters."""
    from bigjax import config

    c = config.new_config()
    own = dict(preset="s16") if model == "vit" else dict(preset="50")
    c.model = dict(name=model, image_size=SIZES[model], mean=(0.5,), std=(0.5,), **own)
    c.task = dict(name="image_classify", labels=tuple(f"LABEL_{i}" for i in range(CLASSES)))
    c.data = dict(name="images", size=SIZES[model])
    sides.use_adamw(c, LEARNING_RATE, B1, B2, WEIGHT_DECAY, CLIP_NORM)
    c.train.batch_size = BATCH
    c.init_from = folder
    c.mesh.update(MESHES[form])
    return c


def theirs(model: str, form: str, folder: str) -> None:
    from bigjax import cpu  # imports no jax

    cpu.keep_freed_memory()  # as our side
    import torch
    import transformers

    torch.manual_seed(0)
    built = _built(transformers, model).train()
    if form == FORMS[0]:
        built.save_pretrained(folder)
    parameters = sum(p.numel() for p in built.parameters())
    images, labels = _examples(model)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    if form == "channels_last":
        built, pixels = (x.to(memory_format=torch.channels_last) for x in (built, pixels))
    else:
        pixels = pixels.contiguous()
    labels = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(
        built.parameters(), lr=LEARNING_RATE, betas=(B1, B2), weight_decay=WEIGHT_DECAY
    )
    run = torch.compile(built) if form == "compiled" else built

    def repeat(_: str) -> dict:
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(run(pixel_values=pixels).logits, labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(built.parameters(), CLIP_NORM)
        optimizer.step()
        return {"loss": loss.item()}

    losses = [repeat("")["loss"] for _ in range(2)]
    attention = f", {built.config._attn_implementation} attention" if model == "vit" else ""
    sides.serve(
        {
            "parameters": parameters,
            "losses": losses,
            "what": f"transformers {transformers.__version__}, torch {torch.__version__}"
            f"{attention}, {torch.get_num_threads()} threads",
        },
        repeat,
    )


def _built(transformers, model: str):
    if model == "resnet":
        return transformers.ResNetForImageClassification(
            transformers.ResNetConfig(num_labels=CLASSES)
        )
    return transformers.ViTForImageClassification(
        transformers.ViTConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            intermediate_size=1536,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            layer_norm_eps=1e-6,
            num_labels=CLASSES,
        )
    )


if __name__ == "__main__":
    main()
