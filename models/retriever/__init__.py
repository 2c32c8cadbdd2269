"""The retriever: a Siamese scorer with a pointer policy over candidates and STOP (docs/policy.md)."""

from models.retriever.choosing import Choosing
from models.retriever.config import RetrieverConfig
from models.retriever.network import PolicyNetwork
from models.retriever.selecting import Chosen, fill, select
from models.retriever.storage import SHIPPED, load_policy, save_policy
from models.retriever.table import GOLD, HOLDS, MAX_CANDIDATES, CandidateTable, TableBatch

__all__ = [
    "GOLD",
    "HOLDS",
    "MAX_CANDIDATES",
    "SHIPPED",
    "CandidateTable",
    "Choosing",
    "Chosen",
    "PolicyNetwork",
    "RetrieverConfig",
    "TableBatch",
    "fill",
    "load_policy",
    "save_policy",
    "select",
]
