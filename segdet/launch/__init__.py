"""Run many runs: benches and sweeps are sources of jobs, and one engine hands the jobs to an executor.

- `job.Job` is one run, and the command that starts or resumes it and tests it.
- `engine.Source` supplies jobs: `bench.BenchJobs` from a list, `sweep.SweepJobs` one by one. It may stop running jobs.
- `engine.Executor` runs them: `local.LocalExecutor` as processes. `slurm` submits job arrays instead.
- `engine.Engine` connects the two, stops the jobs on a signal, and updates the table of `display.LiveTable`.
- `state.read_state` reads the state of a run from its folder. `state.claim` reserves a run for one bench.
"""
