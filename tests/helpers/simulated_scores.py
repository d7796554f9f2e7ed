"""Simulated scores of methods on test rows, with known effects of seeds, rows and teacher trajectories."""


def mean(draws, rows):
    return draws @ rows[:, 0] / draws.sum(axis=1)


def micro_f1(draws, rows):
    matched, predicted, gold = (draws @ rows).T
    return 2 * matched / (predicted + gold)


def scores_of(seeds, rows, *, seed_sd, row_sd, noise_sd, rng):
    """[seeds, rows] normal scores about 0."""
    return rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, row_sd, rows) + rng.normal(0, noise_sd, (seeds, rows))


def grid_of(trajectories, seeds):
    return [(trajectory, seed) for trajectory in range(trajectories) for seed in range(seeds)]


def crossed(trajectories, seeds, rows, *, effects, noise_sd=0.3, rng):
    """[trajectories x seeds, rows] normal scores about 0, in the order of `grid_of`.

    effects: standard deviations of trajectories, seeds, and seeds under one trajectory.
    """
    of_trajectory, of_seed, of_both = effects
    level = rng.normal(0, of_trajectory, (trajectories, 1)) + rng.normal(0, of_seed, (1, seeds))
    level = (level + rng.normal(0, of_both, (trajectories, seeds))).reshape(-1, 1)
    return level + rng.normal(0, 0.3, rows) + rng.normal(0, noise_sd, (trajectories * seeds, rows))


def answers_of(seeds, hardness, *, seed_sd, rng):
    """[seeds, rows] of 0 and 1: right with probability Phi(1 + seed effect - hardness)."""
    return (rng.normal(size=(seeds, len(hardness))) < 1 + rng.normal(0, seed_sd, (seeds, 1)) - hardness).astype(float)
