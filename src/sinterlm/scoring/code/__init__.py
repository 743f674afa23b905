"""The scorer ``code``: the program in an answer, run against its prompt's tests in a sandbox.

In Sinter's own process:

- :mod:`.settings`: what a recipe says of it, without importing the rest.
- :mod:`.scorer`: the scorer; it brings the following together.
- :mod:`.prompt_tests`: the prompt's tests. :mod:`.problem`: what these and the prompt's code ask of an answer.
- :mod:`.extraction`: from an answer's text to a program. :mod:`.syntax`: Python as a tree.
- :mod:`.running`: the processes in the sandbox and the verdict. :mod:`.limits`: which failures are ours.
- :mod:`.sandbox`: isolated interpreters. It knows nothing of answers and tests.

Inside the sandbox: all of :mod:`.inside`, in four roles (:mod:`.inside.main`), and the programs.
"""
