"""diffusers' Flux transformer and its adapter processor, holding the same weights as ours.

Key names and the order of fused parts were read from diffusers 0.42.1
``single_file_utils.convert_flux_transformer_checkpoint_to_diffusers``, which itself works at full width only.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.models.transformers.transformer_flux import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline
from safetensors.torch import save_file
from torch import Tensor

from engine.model.adapter import IPAdapter
from engine.model.flux import Flux
from engine.profile import FluxParams

_PLAIN = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "final_layer.linear": "proj_out",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "modulation.lin": "norm.linear",
    "linear2": "proj_out",
}
_NORMS = {
    "img_attn.norm.query_norm.scale": "attn.norm_q.weight",
    "img_attn.norm.key_norm.scale": "attn.norm_k.weight",
    "txt_attn.norm.query_norm.scale": "attn.norm_added_q.weight",
    "txt_attn.norm.key_norm.scale": "attn.norm_added_k.weight",
    "norm.query_norm.scale": "attn.norm_q.weight",
    "norm.key_norm.scale": "attn.norm_k.weight",
}
_FUSED = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
}
_BLOCKS = {"double_blocks": "transformer_blocks", "single_blocks": "single_transformer_blocks"}


def to_diffusers(state: dict[str, Tensor], params: FluxParams) -> dict[str, Tensor]:
    """A BFL state dict under diffusers' names."""
    hidden = params.hidden_size
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        stack, _, rest = key.partition(".")
        where, name = "", key
        if stack in _BLOCKS:
            index, _, name = rest.partition(".")
            where = f"{_BLOCKS[stack]}.{index}."
        owner, _, leaf = name.rpartition(".")
        if name in _NORMS:
            out[where + _NORMS[name]] = tensor
        elif owner in _FUSED:
            sizes = [hidden, hidden, hidden] + [tensor.shape[0] - 3 * hidden] * (len(_FUSED[owner]) - 3)
            for part, piece in zip(_FUSED[owner], tensor.split(sizes), strict=True):
                out[f"{where}{part}.{leaf}"] = piece
        elif owner == "final_layer.adaLN_modulation.1":
            shift, scale = tensor.chunk(2)
            out[f"norm_out.linear.{leaf}"] = torch.cat((scale, shift))
        else:
            out[f"{where}{_PLAIN[owner]}.{leaf}"] = tensor
    return out


def empty_diffusers_flux(params: FluxParams) -> FluxTransformer2DModel:
    """diffusers' network of the same sizes, on the current default device, its weights still to come."""
    return FluxTransformer2DModel(
        in_channels=params.in_channels,
        num_layers=params.depth,
        num_single_layers=params.depth_single_blocks,
        attention_head_dim=params.hidden_size // params.num_heads,
        num_attention_heads=params.num_heads,
        joint_attention_dim=params.context_in_dim,
        pooled_projection_dim=params.vec_in_dim,
        guidance_embeds=params.guidance_embed,
        axes_dims_rope=params.axes_dim,
    )


def diffusers_flux(flux: Flux) -> FluxTransformer2DModel:
    """The same network in diffusers' implementation."""
    model = empty_diffusers_flux(flux.params)
    model.load_state_dict(to_diffusers(flux.state_dict(), flux.params), strict=True)
    return model.to(next(flux.parameters()).dtype).eval()


def load_adapter_through_diffusers(
    model: FluxTransformer2DModel, folder: str, weight_name: str = "ip_adapter.safetensors"
) -> FluxPipeline:
    """Let diffusers' own ``load_ip_adapter`` read a file of XLabs' layout into the network."""
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=model,
    )
    pipeline.load_ip_adapter(
        folder,
        weight_name=weight_name,
        subfolder="",
        image_encoder_pretrained_model_name_or_path=None,
        low_cpu_mem_usage=False,
    )
    return pipeline


def write_adapter(adapter: IPAdapter, folder: Path) -> str:
    """The adapter as a file of XLabs' layout; its folder, as diffusers wants it."""
    save_file(adapter.state_dict(), str(folder / "ip_adapter.safetensors"))
    return str(folder)
