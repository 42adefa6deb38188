"""MATLAB's documented example of nlmefit: indomethacin in six subjects, two exponentials.

Run it: python examples/matlab_indometh.py
"""

import warnings

import jax.numpy as jnp

import jaxnlme as jn
from jaxnlme.matlab import nlmefit


def biexponential(phi, t):
    return phi[0] * jnp.exp(-phi[1] * t[:, 0]) + phi[2] * jnp.exp(-phi[3] * t[:, 0])


PAGE = {  # printed on MathWorks' example page: all four parameters random, then the first three
    "all random": ([2.8277, 0.7729, 0.4606, -1.3459], 54.588),
    "first three": ([2.8277, 0.7728, 0.4605, -1.3460], 54.5875),
}


def main():
    data = jn.datasets.load("indometh")
    call = (data["time"], data["conc"], data["Subject"], None, biexponential, [1, 2, 1, 1])

    with warnings.catch_warnings():  # the fourth variance is zero, and the door says so
        warnings.simplefilter("ignore", jn.SingularFitWarning)
        all_random = nlmefit(*call, ParamTransform=[0, 1, 0, 1])
    first_three = nlmefit(*call, ParamTransform=[0, 1, 0, 1], REParamsSelect=[1, 2, 3])

    for title, (beta, psi, stats, b) in {
        "all random": all_random,
        "first three": first_three,
    }.items():
        expected, logl = PAGE[title]
        print(f"== {title}")
        print("beta    ", beta.round(4), " page:", expected)
        print("sd(b)   ", (psi.diagonal() ** 0.5).round(4))
        print("logl    ", round(stats.logl, 4), " page:", logl)
        print("columns of b are subjects", [str(label) for label in stats.group_labels], b.shape)
        print(stats)


if __name__ == "__main__":
    main()
