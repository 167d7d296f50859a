"""The engine over HTTP, as OpenAI's API: the deployment stage of the flywheel for real.

The way of a request: `app` checks its body against `schema`; `door` has checked key, size and limits before; `loop` is
the one thread that owns the model and runs the requests of all clients in shared batches; `answers` writes what comes
out as OpenAI does; `metering` hands the usage over before the answer ends. `run` starts and stops it all.

Only this package knows FastAPI, pydantic, uvicorn and prometheus_client; `import engine` loads none of them.
"""
