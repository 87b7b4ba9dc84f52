# titans_jax for TPU VMs; the same on every host of a pod. In the repository's root:
#
#   docker build -f docker/tpu.Dockerfile -t titans-tpu .
#   docker run --rm --privileged --net=host --shm-size=16g titans-tpu \
#       pretrain --workdir=gs://BUCKET/RUN
#
# --privileged and --net=host give the container the chips and the other hosts.
FROM python:3.12-slim

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1

RUN pip install 'jax[tpu] >= 0.10.2, < 0.13'
COPY . /src
RUN pip install '/src[train,hf,parquet,gcs,wandb,tpu]' && rm -rf /src

WORKDIR /work
ENTRYPOINT ["titans"]
