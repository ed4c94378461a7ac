"""Records as a reward model reads them: prompt and response in its own template, as ids of its own tokenizer."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from wmtp.data.records import Record
from wmtp.data.text import check_template, has_chat_template
from wmtp.errors import ConfigError, DataError, first_line

WHERE = "objective.reward.template"


class RewardText:
    """Ids of whole records.

    Args:
        tokenizer: the reward model's. Its chat template is used where it has one.
        template: of a tokenizer without; with `{prompt}` and `{response}`. The tokenizer puts its own BOS, EOS, [CLS]
            and [SEP] around it.
        context: the longest text that the model reads, in tokens.

    Raises:
        ConfigError: both templates or none, or one that is not of this form.
    """

    def __init__(self, tokenizer: Any, template: str | None, context: int) -> None:
        has_chat = has_chat_template(tokenizer)
        if has_chat and template is not None:
            raise ConfigError(f"{WHERE} is set, but the reward model's tokenizer has a chat template; leave it out")
        if not has_chat and template is None:
            raise ConfigError(
                f"the reward model's tokenizer has no chat template: set {WHERE}, for example to "
                "'{prompt}\\n{response}', as the model was trained"
            )
        if template is not None:
            check_template(template, ("prompt", "response"), WHERE)
        self.tokenizer, self.template, self.context = tokenizer, template, context

    def ids(self, record: Record) -> NDArray[np.int32]:
        """The record, whole.

        Raises:
            DataError: a record that the template cannot render.
        """
        text = self._rendered(record)
        ids = self.tokenizer(text, add_special_tokens=self.template is not None, truncation=False)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    def _rendered(self, record: Record) -> str:
        name = f"problem {record.problem_id!r:.60}"
        if self.template is not None:
            if record.messages:
                raise DataError(
                    f"{name} is a conversation, and the reward model's tokenizer has no chat template; use a reward "
                    "model of chats, or map the text with data.*.fields"
                )
            return self.template.format(prompt=record.prompt, response=record.response)
        asked = [dict(message) for message in record.messages] or [{"role": "user", "content": record.prompt}]
        try:
            text: str = self.tokenizer.apply_chat_template(
                [*asked, {"role": "assistant", "content": record.response}], tokenize=False
            )
        except Exception as problem:  # templates raise what they like
            raise DataError(
                f"{name}: the reward model's chat template refuses it: {first_line(problem)}; mend its messages, or "
                "leave it out"
            ) from problem
        return text
