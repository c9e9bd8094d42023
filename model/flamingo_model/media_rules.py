"""Which picture a token saw in the code that older checkpoints were made and measured with.

Pure functions of one sequence, beside the paper's rule (`visible_media`). A checkpoint runs under
any of them. What is generated is one token a step, after the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence


def next_media(token_ids: Sequence[int], image_token_id: int) -> list[int]:
    """OpenFlamingo's first version, Med-Flamingo, Multimodal-GPT: text sees the media to come.

    For each token the index of its media, or -1. A media's own token sees that media; any other
    sees the next one, text before the first media the first, text after the last none.
    """
    num_media, seen, index = list(token_ids).count(image_token_id), 0, []
    for token in token_ids:
        if token == image_token_id:
            index.append(seen)
            seen += 1
        else:
            index.append(seen if seen < num_media else -1)
    return index


def last_for_generated(prompt_index: Sequence[int]) -> int:
    """OpenFlamingo's second version, and the paper: what is generated sees what the prompt's end
    saw.
    """
    return prompt_index[-1] if prompt_index else -1


def none_for_generated(prompt_index: Sequence[int]) -> int:
    """The first version and Otter, with a cache: a step looks for media in its own token only.

    Otter's prompt follows `visible_media`; the media reach its answer through the prompt's keys
    and values alone.
    """
    return -1
