"""A router with a peer's command line that does the least: two legs, one after the other."""

from __future__ import annotations

import argparse
import itertools
import json

import aiohttp
from aiohttp import web


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int)
    parser.add_argument("--prefill", action="append")
    parser.add_argument("--decode", action="append")
    options, _ = parser.parse_known_args()
    pairs = itertools.cycle(zip(options.prefill, options.decode, strict=True))

    async def route(request: web.Request) -> web.StreamResponse:
        prefill, decode = next(pairs)
        body = await request.json()
        async with aiohttp.ClientSession() as session:
            first = {**body, "stream": False, "max_tokens": 1, "stream_options": None}
            async with session.post(prefill + request.path, json=first) as reply:
                body["kv_transfer_params"] = (await reply.json())["kv_transfer_params"]
            async with session.post(decode + request.path, data=json.dumps(body)) as reply:
                answer = web.StreamResponse(headers={"content-type": reply.content_type})
                await answer.prepare(request)
                async for piece in reply.content.iter_any():
                    await answer.write(piece)
                return answer

    async def health(_request: web.Request) -> web.Response:
        return web.Response()

    app = web.Application(client_max_size=8 << 20)
    app.router.add_post("/v1/chat/completions", route)
    app.router.add_get("/health", health)
    web.run_app(app, host="127.0.0.1", port=options.port, print=None)


if __name__ == "__main__":
    main()
