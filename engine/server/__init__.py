"""How is the engine asked over HTTP? OpenAI's API: the deployment stage of the flywheel for real.

The way of a request: `middleware` checks key, size and limits; `routes` checks the body against `schema`;
`request_parsing` makes token ids of it; `lifecycle` admits it; `engine_thread` owns the model and runs the requests of
all clients in shared batches; `responses` writes the output in OpenAI's format; `lifecycle` meters it before the
response ends. `server` starts and stops it all.

Only this package knows FastAPI, pydantic, uvicorn and prometheus_client; `import engine` loads none of them.
"""
