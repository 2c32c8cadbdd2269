"""Which decoder reads and answers, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class HfConfig:
    """The backbone: a decoder that `transformers` loads, with an optional adapter."""

    model: str = field(
        default="gemma-3-270m",
        metadata={
            "help": "gemma-3-270m (from its PyPI wheel, converted once), a folder with a transformers decoder "
            "(safetensors), or a hub name"
        },
    )
    adapter: str | None = field(
        default="shipped",
        metadata={
            "help": "shipped (our reader's LoRA, for gemma-3-270m), none, or a folder of a peft LoRA adapter"
        },
    )
    dtype: str = field(
        default="float32", metadata={"help": "type of the weights: float32, bfloat16 or float16"}
    )
    device: str = field(
        default="auto", metadata={"help": "auto (a GPU if there is one), cpu, cuda or cuda:N"}
    )
    threads: int = field(
        default=0, metadata={"help": "CPU threads of torch in this process; 0 leaves torch's own choice"}
    )
    prompt_block: int = field(
        default=512, metadata={"help": "tokens of a prompt computed in one step, which bounds working memory"}
    )
    fused_latents: bool = field(
        default=False,
        metadata={
            "help": "decoding in fixed shapes reads a cache's latents as factors, by the kernel latent_decode, and "
            "does not unpack them; false: in the default key frame it is slower (1.17 times on an H200)"
        },
    )

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("backbone.model is empty; give gemma-3-270m, a folder or a hub name")
        if self.dtype not in DTYPES:
            raise ValueError(f"backbone.dtype is {self.dtype!r}; allowed: {', '.join(DTYPES)}")
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise ValueError(f"backbone.device is {self.device!r}; allowed: auto, cpu, cuda, cuda:N")
        if not isinstance(self.fused_latents, bool):
            raise ValueError(f"backbone.fused_latents is {self.fused_latents!r}; allowed: true, false")
        for name, least in (("threads", 0), ("prompt_block", 1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"backbone.{name} is {value!r}; it must be a whole number of at least {least}"
                )
