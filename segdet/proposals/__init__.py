"""Region proposals: where in an image something may be, before anybody has said what.

Importing this package loads neither torch nor Numba.
"""

from segdet.proposals.base import Proposer
from segdet.proposals.file import ProposalFile, save_proposals
from segdet.proposals.rpn import RPN
from segdet.proposals.selective_search import SelectiveSearch
from segdet.proposals.uniform_windows import UniformWindows

__all__ = ["RPN", "ProposalFile", "Proposer", "SelectiveSearch", "UniformWindows", "save_proposals"]
