"""The policy network as an RLModule of RLlib's new API stack: the same logits, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from torch import Tensor

from models.retriever.config import RetrieverConfig
from models.retriever.network import OBSERVED, PolicyNetwork

_VALUE_ROWS = 2048
"""Rows of one forward pass when a whole train batch is valued at once."""


class RetrieverModule(TorchRLModule, ValueFunctionAPI):  # type: ignore[misc]
    """`model_config`: `network` (the fields of RetrieverConfig), `policy` (a saved one to begin with, or empty)."""

    def setup(self) -> None:
        """Make the network; a saved policy's weights must fit the configuration."""
        told: Any = self.model_config
        fields = dict(told["network"])
        fields["feature_names"] = tuple(fields.get("feature_names", ()))
        fields["dropout"] = 0.0  # learner and sampler see the same policy
        self.network = PolicyNetwork(RetrieverConfig(**fields))
        begin = told.get("policy")
        if begin:
            from models.retriever.storage import load_policy

            saved, _ = load_policy(Path(begin))
            self.network.load_state_dict(saved.state_dict())

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        logits, _ = self.network(_observed(batch))
        return {Columns.ACTION_DIST_INPUTS: logits}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return self._forward(batch, **kwargs)

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> Tensor:
        """Values [B]; long batches in pieces, because RLlib values a whole train batch at once."""
        observed = _observed(batch)
        parts = [
            self.network({name: array[at : at + _VALUE_ROWS] for name, array in observed.items()})[1]
            for at in range(0, len(observed["query"]), _VALUE_ROWS)
        ]
        return torch.cat(parts)


def _observed(batch: Mapping[str, Any]) -> dict[str, Tensor]:
    given = batch[Columns.OBS]
    observed = {name: torch.as_tensor(given[name]) for name in OBSERVED}
    # The row that bootstraps an episode's end may come padded with zeros: STOP stays legal there.
    legal = observed["legal"]
    none = legal.sum(-1) == 0
    if bool(none.any()):
        legal = legal.clone()
        legal[none, -1] = 1.0
        observed["legal"] = legal
    return observed
