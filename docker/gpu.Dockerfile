# titans_jax for NVIDIA GPUs. CUDA comes with JAX's wheels; the host needs a driver
# of CUDA 13 and the NVIDIA Container Toolkit. In the repository's root:
#
#   docker build -f docker/gpu.Dockerfile -t titans-gpu .
#   docker run --rm --gpus all --shm-size=2g -v "$PWD/runs:/work/runs" titans-gpu \
#       pretrain --workdir=runs/quickstart
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    XLA_PYTHON_CLIENT_MEM_FRACTION=.92

# What changes seldom first: JAX and CUDA are 5 GB that a change of the source does
# not install again.
RUN pip install 'jax[cuda13] >= 0.10.2, < 0.13'
COPY . /src
RUN pip install '/src[train,hf,parquet,gcs,wandb,cuda13]' && rm -rf /src

WORKDIR /work
ENTRYPOINT ["titans"]
