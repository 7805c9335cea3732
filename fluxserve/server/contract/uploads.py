"""Uploaded pictures, decoded in threads of their own before a job is made of them."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from fluxserve.errors import InvalidRequest
from fluxserve.input_images import InputImage, inspect_image

DECODE_TIMEOUT_S = 10.0


class UploadReader:
    """Reads uploads, two at once. max_pixels: the largest it decodes."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="upload")

    async def read(self, data: bytes, param: str) -> InputImage:
        """The picture that `data` holds.

        Raises:
            InvalidRequest: `invalid_{param}`: no PNG, JPEG or WebP, damaged, too large, or too slow to decode.
        """
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DECODE_TIMEOUT_S):
                return await loop.run_in_executor(self._threads, inspect_image, data, param, self._max_pixels)
        except TimeoutError:
            raise InvalidRequest(
                f"{param} takes longer than {DECODE_TIMEOUT_S:g} s to decode", param=param, code=f"invalid_{param}"
            ) from None

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
