"""Stand-ins for the process that compiles kernels: each does what its listing says. No torch, so they start at once."""

BOOTSTRAP = r"""
import json, os, sys, time
listing = sys.argv[2]
say = lambda **word: print(json.dumps(word), flush=True)
if listing == "deaf":
    time.sleep(600)
job = json.loads(sys.stdin.readline())
if listing == "rubbish":
    print("Loading kernels", flush=True)
say(type="Ready", kernels=job["kernels"] + (listing == "miscounts"))
for count, line in enumerate(sys.stdin):
    index = int(line)
    if listing == "hangs":
        time.sleep(600)
    if listing == "dies" and count:
        print("out of memory", file=sys.stderr, flush=True)
        os._exit(7)
    if listing == "refuses":
        say(type="Compiled", index=index, error="ValueError: no")
    elif listing == "strays":
        say(type="Compiled", index=index + 1000, hash="hash 1")
    else:
        say(type="Compiled", index=index, hash=f"{'other' if listing == 'differs' else 'hash'} {index}")
"""
