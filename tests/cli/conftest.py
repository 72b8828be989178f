from run_fixtures import fitted, line, run, shapes

__all__ = ["fitted", "line", "run", "shapes"]
