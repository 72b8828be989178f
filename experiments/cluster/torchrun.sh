#!/bin/bash
# Trains and tests a model on the GPUs of several machines without a scheduler. Edit the three lines below the numbers,
# then start the script on each machine, in the folder of the project, which all machines share:
#   bash experiments/cluster/torchrun.sh
# If a process is killed, torchrun starts all of them again, and the run is resumed.
# 1. The number of machines, and the address of one of them with a free port
machines=2 first=10.0.0.1:29500
# 2. GPUs of each machine, and the network interface that connects the machines, as `ip route get ADDRESS` shows it
gpus=4 network=eth0
# 3. The run
run=(--config configs/shapes/fcn.yaml --config configs/trainers/ddp.yaml --run_dir runs/fcn-torchrun)

# Without the interface, gloo and NCCL use the address of the host's name, which may be 127.0.0.1.
export GLOO_SOCKET_IFNAME=$network NCCL_SOCKET_IFNAME=$network
# For the same reason, torchrun receives the address of this machine, and whether this machine hosts the rendezvous.
address=$(ip -o -4 address show dev "$network" | awk '{ sub("/.*", "", $4); print $4; exit }')
if [ "$address" = "${first%:*}" ]; then meet_here=true; else meet_here=false; fi
# A shared store would keep the addresses of the processes that were killed.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi
exec torchrun --nnodes="$machines" --nproc-per-node="$gpus" --max-restarts="${RESTARTS:-3}" \
    --rdzv-backend=c10d --rdzv-endpoint="$first" --rdzv-conf="is_host=$meet_here" --local-addr="$address" \
    --rdzv-id="${run[-1]##*/}" \
    -m segdet fit "${run[@]}" \
    --trainer.devices="$gpus" --trainer.num_nodes="$machines" --resume=auto --test=true
