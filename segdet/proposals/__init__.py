"""Region proposals: boxes that may hold an object of any class.

Importing this package loads neither torch nor Numba. The proposals of a trained Faster R-CNN are in
`segdet.detection.rpn_proposer`.
"""

from segdet.proposals.base import Proposer
from segdet.proposals.file import ProposalFile, save_proposals
from segdet.proposals.selective_search import SelectiveSearch
from segdet.proposals.uniform_windows import UniformWindows

__all__ = ["ProposalFile", "Proposer", "SelectiveSearch", "UniformWindows", "save_proposals"]
