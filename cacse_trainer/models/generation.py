"""A causal language model, here or behind an OpenAI-compatible server, that answers one prompt at a time."""

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from cacse_trainer.errors import UserError, one_line, user_errors
from cacse_trainer.models.pretrained import load_tokenizer, load_weights

KEY = "OPENAI_API_KEY"
"""The environment's variable with a server's key, if it wants one."""
AT_ONCE = 8
ATTEMPTS = 4
PAUSE = 1.0  # seconds before the second attempt, then twice as long each time
TIMEOUT = 120.0
PASSING = (408, 409, 425, 429, 500, 502, 503, 504)
"""What a server answers when it may answer otherwise soon."""


class LocalModel:
    """A causal language model in this process; its most likely answer to each prompt.

    Args:
        path: folder or hub id.
        device: where it runs.
        max_new_tokens: an answer's most.
        batch_size: prompts at once.
        trust_remote_code: run the code that comes with it.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(
        self,
        path: str,
        device: torch.device | str,
        *,
        max_new_tokens: int = 48,
        batch_size: int = 8,
        trust_remote_code: bool = False,
    ) -> None:
        with user_errors(f"language model {path}", KeyError, RuntimeError):
            self.model, _ = load_weights(AutoModelForCausalLM, path, trust_remote_code=trust_remote_code)
            self.tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        self.model = self.model.eval().to(device)
        self.tokenizer.padding_side = "left"  # what is generated follows the prompt's last token
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """The answers, in order."""
        found: list[str] = []
        for start in range(0, len(prompts), self.batch_size):
            part = [self._as_chat(prompt) for prompt in prompts[start : start + self.batch_size]]
            inputs = self.tokenizer(part, padding=True, return_tensors="pt").to(self.model.device)
            with torch.inference_mode():
                output = self.model.generate(
                    **inputs,
                    max_new_tokens=self.max_new_tokens,
                    do_sample=False,
                    pad_token_id=self.tokenizer.pad_token_id,
                )
            answers = output[:, inputs["input_ids"].shape[1] :]
            found += self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return found

    def _as_chat(self, prompt: str) -> str:
        if self.tokenizer.chat_template is None:
            return prompt
        said = [{"role": "user", "content": prompt}]
        return str(self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))


class Server:
    """An OpenAI-compatible server (vLLM, llama.cpp, Ollama, …), asked by ``POST URL/chat/completions``.

    Its key, where it wants one, is read from the environment (``OPENAI_API_KEY``).

    Args:
        url: up to ``/v1``.
        model: the name that it knows.
        max_new_tokens: an answer's most.
    """

    def __init__(self, url: str, model: str, *, max_new_tokens: int = 48) -> None:
        self.url, self.model, self.max_new_tokens = f"{url.rstrip('/')}/chat/completions", model, max_new_tokens

    def __call__(self, prompts: Sequence[str]) -> list[str]:
        """The answers, in order; several are waited for at once.

        Raises:
            UserError: the server cannot be reached, or refuses.
        """
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self._answer, prompts))

    def _answer(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": self.max_new_tokens,
            "temperature": 0,
        }
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {key}"
        try:
            request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        except ValueError as error:
            raise UserError(f"language model {self.url}: no URL ({one_line(error)})") from error
        for attempt in range(ATTEMPTS):
            try:
                with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                    return self._text_of(response.read())
            except urllib.error.HTTPError as error:
                if error.code not in PASSING or attempt + 1 == ATTEMPTS:
                    said = " ".join(error.read()[:200].decode(errors="replace").split())
                    raise UserError(f"language model {self.url}: answers {error.code} ({said})") from error
            except UserError:
                raise
            except (OSError, ValueError, HTTPException) as error:
                if attempt + 1 == ATTEMPTS:
                    raise UserError(
                        f"language model {self.url}: cannot be reached ({one_line(error)}); does the server run?"
                    ) from error
            time.sleep(PAUSE * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    def _text_of(self, answer: bytes) -> str:
        try:
            found: Any = json.loads(answer)
            return str(found["choices"][0]["message"]["content"] or "").encode(errors="replace").decode()
        except (ValueError, RecursionError, KeyError, IndexError, TypeError) as error:
            raise UserError(
                f"language model {self.url}: answers {answer[:100].decode(errors='replace')!r}, no chat completion; "
                "is this the URL up to /v1?"
            ) from error
