"""One right program, wrapped as models wrap code: every text must come to a program whose ``add(1, 2)`` is 3."""

WHOLE = "def add(a, b):\n    return a + b\n"
FENCED = f"```python\n{WHOLE}```"

WRAPPINGS = {
    # Fences.
    "a fence": FENCED,
    "prose around a fence": f"Here is the function.\n\n{FENCED}\n\nIt adds a and b.",
    "capitals": f"```Python\n{WHOLE}```",
    "py3": f"```py3\n{WHOLE}```",
    "py": f"```py\n{WHOLE}```",
    "python3": f"```python3\n{WHOLE}```",
    "attributes of pandoc": f"```{{.python .numberLines}}\n{WHOLE}```",
    "a chunk of R Markdown": f"```{{python}}\n{WHOLE}```",
    "a title": f'```python title="add.py"\n{WHOLE}```',
    "a file name": f"```python:add.py\n{WHOLE}```",
    "marked lines": f"```python{{1,3-4}}\n{WHOLE}```",
    "a space before the language": f"``` python\n{WHOLE}```",
    "no language": f"```\n{WHOLE}```",
    "language text": f"```text\n{WHOLE}```",
    "tildes": f"~~~python\n{WHOLE}~~~",
    "tildes with text behind": f"~~~python\n{WHOLE}~~~ done\nIt adds.",
    "Windows line ends": f"Here.\n\n{FENCED}\n\nDone.".replace("\n", "\r\n"),
    "line ends of old": f"Here.\n\n{FENCED}\n\nDone.".replace("\n", "\r"),
    "never closed": f"Sure:\n```python\n{WHOLE}",
    "never closed, cut within a second function": f"```python\n{WHOLE}\ndef other(a):\n    return [a for",
    "closed by a fence with a full stop": f"{FENCED}.",
    "closed by a fence with text": f"{FENCED} This adds both numbers.\n\nIt's simple.",
    "closed by a fence with text, and usage": f"{FENCED} Use:\n\n```python\nprint(add(int(input()), 1))\n```",
    "closed at the end of a line": f"```python\n{WHOLE.rstrip()}```\n\nIt's done.",
    "closed by four": f"```python\n{WHOLE}````",
    "opened behind text": f"Here is the code: {FENCED}\nDone.",
    "code on the opening line": "```python def add(a, b):\n    return a + b\n```",
    "all on one line": "```python def add(a, b): return a + b```",
    "in the line of a text": "Take `add = lambda a, b: a + b` and be happy.",
    "indented code in a fence": "```python\n    def add(a, b):\n        return a + b\n```",
    "in a list": "1. Like this:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n2. Done.",
    "in a list of a list": "- This:\n  - That:\n\n    ```python\n    def add(a, b):\n        return a + b\n    ```\n",
    "in a quotation": f"{'> '}```python\n> def add(a, b):\n>     return a + b\n> ```\n\nDone.",
    "in two quotations": "> > ```python\n> > def add(a, b):\n> >     return a + b\n> > ```",
    "in a fence of four": f"````markdown\n{FENCED}\n````",
    "in a fence of tildes": f"~~~markdown\nText.\n\n{FENCED}\n~~~",
    "in a fence of no language": f"````\n{FENCED}\n````",
    "a fence of four of its own": f"````python\n{WHOLE}# ```\n````",
    "in details": f"<details>\n<summary>Code</summary>\n{FENCED}\n</details>",
    "a fenced example in a docstring": '```python\ndef add(a, b):\n    """Sum.\n\n    ```\n    add(1, 2)\n    ```\n    """\n'
    "    return a + b\n```",
    "a fenced example in a docstring, not indented": '```python\ndef add(a, b):\n    """Sum.\n```python\nadd(1, 2)\n```\n'
    '    """\n    return a + b\n```\nDone.',
    "a fence in a text of the program": '```python\nMARK = "```"\ndef add(a, b):\n    return a + b\n```\nDone.',
    # Other marks.
    "[PYTHON]": f"[PYTHON]\n{WHOLE}[/PYTHON]",
    "[PYTHON] within a line": "[PYTHON]def add(a, b):\n    return a + b[/PYTHON]",
    "code and pre": '<pre><code class="language-python">def add(a, b):\n    return a + b if a &lt; 9 else a + b\n</code></pre>',
    "<code>": f"<code>\n{WHOLE}</code>",
    "<python>": f"Sure.\n<python>{WHOLE}</python>",
    "<answer>": f"<answer>\n{FENCED}\n</answer>",
    "<solution>": f"<solution>{WHOLE}</solution>",
    "LaTeX": f"\\begin{{lstlisting}}[language=Python]\n{WHOLE}\\end{{lstlisting}}",
    # No mark.
    "nothing around": WHOLE,
    "prose around": f"Sure! Here it is, from my notes:\n\n{WHOLE}\nHope this helps.",
    "prose behind": f"{WHOLE}\nThis function adds a and b.\nIt's simple.",
    "prose at once behind": f"{WHOLE}This function doesn't fail.",
    "a word before": f"Solution\n\n{WHOLE}",
    "a word and a colon before": f"Solution:\n{WHOLE}",
    "a heading before": f"# Solution\n\n## Code\n\n{WHOLE}",
    "the language before": f"python\n{WHOLE}",
    "prose like code before": f"from the sum of both I take:\nfor all numbers\n\n{WHOLE}",
    "prose between": f"We need this:\n\nimport math\n\nand then the function:\n\n{WHOLE}\nThat's all, isn't it?",
    "indented, with prose": "Here it is:\n\n    def add(a, b):\n        return a + b\n\nThat's all.",
    "the answer in all": "    def add(a, b):\n        return a + b",
    # What is in the code.
    "a byte order mark": f"```python\n\ufeff{WHOLE}```",
    "a byte order mark before all": f"\ufeff{FENCED}",
    "zero-width characters": "```python\ndef add(a,\u200b b):\n    return a\u2060 + b\n```",
    "typographic quotes": "```python\ndef add(a, b):\n    \u201c\u201d\u201cThe sum.\u201d\u201d\u201d\n    x = \u2018y\u2019\n"
    "    return a + b\n```",
    "no-break spaces": "```python\ndef add(a, b):\n\u00a0\u00a0\u00a0\u00a0return\u00a0a + b\n```",
    "tabs": "```python\ndef add(a, b):\n\treturn a + b\n```",
    "entities": "```python\ndef add(a, b):\n    return a + b if a &lt; b else b + a\n```",
    "a difference": "```diff\n@@ -1,2 +1,2 @@\n def add(a, b):\n-    return a - b\n+    return a + b\n```",
    "a difference of all": "```diff\n+def add(a, b):\n+    return a + b\n```",
    "a session": "```python\n>>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n```",
    "a session that says so": "```pycon\n>>> def add(a, b):\n...     return a + b\n>>> add(1, 2)\n3\n```",
    "a notebook": "```python\nIn [1]: def add(a, b):\n    return a + b\n```",
    "a notebook's commands": f"```python\n%matplotlib inline\n!pip install numpy\n{WHOLE}```",
    "line numbers": "```python\n1 def add(a, b):\n2     return a + b\n```",
    "dots for what is left out": f"```python\n{WHOLE}```\n```python\n...\nadd(x, y)\n...\n```",
    # Several blocks.
    "another language first": f"```bash\npip install numpy\n```\n{FENCED}",
    "another language behind": f"{FENCED}\n```javascript\nfunction add(a, b) {{ return a - b; }}\n```",
    "its output behind": f"```\n{WHOLE}```\nOutput:\n```\n3 is printed\n```",
    "a helper in a block of its own": "```python\ndef plus(a, b):\n    return a + b\n```\nand\n"
    "```python\ndef add(a, b):\n    return plus(a, b)\n```",
    "a helper in a block behind": "```python\ndef add(a, b):\n    return plus(a, b)\n```\nwhere\n"
    "```python\ndef plus(a, b):\n    return a + b\n```",
    "imports in a block of their own": "```python\nimport operator\n```\n```python\ndef add(a, b):\n"
    "    return operator.add(a, b)\n```",
    "the better one last": f"```python\ndef add(a, b):\n    return 0\n```\nThat is wrong.\n{FENCED}",
    "a block that is no Python": f"```python\nadd(a, b) -> a + b\n```\n{FENCED}",
    "the solution without language, the usage with": f"```\n{WHOLE}```\n```python\nprint(add(1, 2))\n```",
    "usage that reads input": f"{FENCED}\n```python\nn = int(input())\nprint(add(n, 1))\n```",
    "usage that reads input, in the block": f"```python\n{WHOLE}\nn = int(input())\nprint(add(n, 1))\n```",
    "usage with a missing package": f"{FENCED}\n```python\nimport numpy\nprint(numpy.add(1, 2))\n```",
    "usage with places to fill": f"{FENCED}\n```python\nprint(add(<first>, <second>))\n```",
    "usage that ends the program": f"```python\n{WHOLE}\nimport sys\nsys.exit(add(1, 2))\n```",
    "a wrong assert of its own": f"```python\n{WHOLE}\nassert add(1, 2) == 4\n```",
    "a wrong assert in a block of its own": f"{FENCED}\nTests:\n```python\nassert add(2, 2) == 5\n```",
    "a main guard": f"```python\n{WHOLE}\nif __name__ == '__main__':\n    print(add(int(input()), 2))\n```",
    "a plot": f"```python\nimport matplotlib.pyplot as plt\n{WHOLE}\nplt.plot([add(1, 2)])\nplt.show()\n```",
    "its own test case": f"```python\nimport unittest\n{WHOLE}\nclass TestAdd(unittest.TestCase):\n"
    "    def test(self):\n        self.assertEqual(add(1, 2), 4)\n\nunittest.main()\n```",
    "the name in a draft before": "```python\n# add\nadd(1, 2)\n```\nSo:\n" + FENCED,
    "a lambda": "```python\nadd = lambda a, b: a + b\n```",
    "imported": "```python\nfrom operator import add\n```",
    "a method of a class": "```python\nclass Sums:\n    def add(self, a, b):\n        return a + b\n\nadd = Sums().add\n```",
    "under a condition": "```python\nif True:\n    def add(a, b):\n        return a + b\n```",
    "from the future": f'```python\n"""Sums."""\nfrom __future__ import annotations\n{WHOLE}```',
    # Thoughts.
    "a draft in a thought": f"<think>\n```python\nresult = compute(x)\n```\nNo.\n</think>\n{FENCED}",
    "a wrong draft in a thought": f"<think>\n```python\ndef add(a, b): return 0\n```\n</think>\n\n{FENCED}",
    "a fence that a thought never closes": f"<think>\n```python\ndef add(a, b):\n</think>\n{FENCED}",
    # Further ones of today's models.
    "a recap of the header": f"{FENCED}\n\nIts shape:\n\n```python\ndef add(a, b):\n    ...\n```",
    "the header behind, with a docstring": f'{FENCED}\n\n```python\ndef add(a, b):\n    """Add."""\n    pass\n```',
    "numbered lines before a bar": "```python\n 1 | def add(a, b):\n 2 |     return a + b\n```",
    "an artifact": f'<antArtifact type="application/vnd.ant.code" language="python">\n{WHOLE}</antArtifact>',
    "a token that ends a turn": f"{FENCED}<|im_end|>",
    "a token that ends a text, no fence closed": f"```python\n{WHOLE}<|endoftext|>",
    "a walk through single lines": (
        f"```python\nc = a + b\n```\nthen\n\n```python\nreturn c\n```\n\nAll of it:\n\n{FENCED}\n\n```python\nreturn a + b\n```"
    ),
    "a fence never closed, then prose": f"```python\n{WHOLE}\n### Explanation\nIt's the sum, isn't it?",
    "another language before": f"```cpp\nint add(int a, int b) {{ return 0; }}\n```\n\n{FENCED}",
    "a cell of a table": f"<table><tr><td>\n\n{FENCED}\n\n</td></tr></table>",
}

STUB = '''from typing import List


def add(a: int, b: int) -> int:
    """Add two numbers.
    >>> add(1, 2)
    3
    """
'''
BEGINNINGS = {
    "a docstring": STUB,
    "the signature alone": "def add(a, b):",
    "the signature alone, and a line end": "def add(a, b):\n",
    "a tab": "def add(a, b):\n\t'''Sum.'''\n",
    "two spaces": "def add(a, b):\n  '''Sum.'''\n",
    "pass": "def add(a, b):\n    pass\n",
    "dots on the line": "def add(a, b): ...\n",
    "an error": "import math\n\ndef add(a, b):\n    raise NotImplementedError\n",
    "an error with words": 'def add(a, b):\n    """Sum."""\n    raise NotImplementedError("write this")\n',
    "return None": "def add(a, b):\n    # your code here\n    return None\n",
    "a result": "def add(a, b):\n    result = []\n    # your code here\n    return result\n",
    "tests behind": "def add(a, b):\n    pass\n\nassert add(1, 2) == 3\n",
}
BODY = "    total = a + b\n    return total\n"
CONTINUATIONS = {
    "the rest of the function": BODY,
    "two spaces": BODY.replace("    ", "  "),
    "a tab": BODY.replace("    ", "\t"),
    "first line stripped": "total = a + b\n    return total\n",
    "not indented": "total = a + b\nreturn total\n",
    "one line": "return a + b",
    "prose behind": f"{BODY}\nThis adds both numbers.",
    "prose before": f"Here is the body:\n\n{BODY}",
    "fenced": f"```python\n{BODY}```",
    "fenced, two spaces": "```python\n  return a + b\n```",
    "fenced, tabs": "```\n\treturn a + b\n```",
    "fenced, not indented": "```python\ntotal = a + b\nreturn total\n```",
    "fenced, prose around": f"This is it:\n\n```python\n{BODY}```\n\nIt's the sum.",
    "the rest and more": f"{BODY}\n\nif __name__ == '__main__':\n    print(add(1, 2))\n",
    "the rest and a helper": "    return plus(a, b)\n\n\ndef plus(a, b):\n    return a + b\n",
    "the whole": WHOLE,
    "the whole, fenced": FENCED,
}
