from experiment_files import folder
from postgresql import postgresql

__all__ = ["folder", "postgresql"]
