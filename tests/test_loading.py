"""What a folder of a model may not do. Expected values come from what diffusers writes, and from what its versions before 0.38 were seen to run."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessor

from assay.errors import Unsupported
from assay.loading import load, locate
from assay.testing import save_tiny
from assay.testing.pipelines import tiny_pipeline


def test_parts_with_code_of_their_own_are_refused(tmp_path):
    """Before 0.38 diffusers imports a file NAME.py in a part's folder, where NAME is the part's library; no such file here is ever run."""
    folder = save_tiny(tmp_path / "m")
    about = json.loads((folder / "model_index.json").read_text())
    for library in ("evil", "os.path", "stable_diffusion.evil", 5):
        (folder / "model_index.json").write_text(json.dumps(about | {"unet": [library, "UNet"]}))
        (folder / "unet/evil.py").write_text("raise SystemExit")
        with pytest.raises(Unsupported, match=f"unet .*`{library}`"):
            load(folder)
    (folder / "model_index.json").write_text(json.dumps(about))
    assert locate(folder) == str(folder)
    (folder / "unet/diffusers.py").write_text("raise SystemExit")
    with pytest.raises(Unsupported, match=r"unet .*`diffusers`"):
        load(folder)


def test_a_folder_of_half_precision_alone_is_loaded(tmp_path):
    """As `save_pretrained(variant="fp16")` leaves it: every weights file is NAME.fp16.safetensors."""
    pipeline = tiny_pipeline()
    pipeline.to(torch.float16)
    pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    assert all(file.name.endswith(".fp16.safetensors") for file in (tmp_path / "half").rglob("*.safetensors"))
    pipeline.save_pretrained(tmp_path / "whole")
    loaded = load(tmp_path / "half")
    assert loaded.dtype == torch.float32
    assert loaded.digest == load(tmp_path / "whole").digest
    both = tmp_path / "whole/unet"
    (both / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not read where the whole weights are")
    assert load(tmp_path / "whole").digest == loaded.digest
    (tmp_path / "half/vae/diffusion_pytorch_model.fp16.safetensors").rename(tmp_path / "half/vae/diffusion_pytorch_model.safetensors")
    assert load(tmp_path / "half").digest == loaded.digest


def test_a_safety_checker_is_a_part_of_diffusers(tmp_path):
    """As diffusers itself writes it: from the pipeline module `stable_diffusion`, with an extractor of transformers."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = CLIPConfig(text_config=sizes, vision_config=sizes | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    pipeline = tiny_pipeline()
    pipeline.register_modules(safety_checker=StableDiffusionSafetyChecker(config), feature_extractor=CLIPImageProcessor())
    pipeline.save_config(tmp_path)
    about = json.loads((tmp_path / "model_index.json").read_text())
    assert about["safety_checker"] == ["stable_diffusion", "StableDiffusionSafetyChecker"]
    assert locate(tmp_path) == str(tmp_path)
