# CPU:  docker build -t saelora .
# GPU:  docker build -t saelora --build-arg TORCH_INDEX=https://pypi.org/simple .     then docker run --gpus all ...
# Run:  docker run --rm -it -v "$PWD:/work" -v saelora-cache:/cache saelora demo
# Not built in this project's CI, which has no docker: what it installs is what make demo installs.
FROM python:3.12-slim
# PyPI's torch brings CUDA, gigabytes of it; this index has the CPU's
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Triton builds the KL head's kernels with a C compiler
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --no-deps -c constraints.txt --extra-index-url ${TORCH_INDEX} torch \
    && pip install --no-cache-dir -c constraints.txt ".[serve]"
ENV SAELORA_CACHE=/cache/saelora HF_HOME=/cache/huggingface
WORKDIR /work
ENTRYPOINT ["saelora"]
