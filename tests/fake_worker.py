"""`python -m tests.fake_worker`: the real worker process with the fake pipeline."""

from fluxserve.worker.process import serve
from tests.fake_pipeline import describe_fake, load_fake

if __name__ == "__main__":
    serve(load_fake, describe_fake)
