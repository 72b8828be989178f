from experiment_files import folder

__all__ = ["folder"]
