"""Names from a model inside generated C: only in comments, and only characters that cannot end one."""

from __future__ import annotations

import re

LONGEST = 200


def comment(text: str) -> str:
    """`text` fit for a C comment: no `*`, no backslash, no line break, whatever the model calls its tensors."""
    safe = re.sub(r"[^\w .:,()\[\]@=+-]", "_", text, flags=re.ASCII)
    return safe if len(safe) <= LONGEST else safe[:LONGEST] + "..."
