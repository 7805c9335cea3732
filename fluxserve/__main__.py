"""`python -m fluxserve`: the command line."""

from fluxserve.cli import app

app(prog_name="fluxserve")
