import time, httpx
from e2e.calls import *
def chunks(n):
    for _ in range(n): yield b"A"*65536
def test_it(client):
    print(ask(client, text("hi"), max_tokens=5))
    print(ask(client, text("hi"), image(png()), text("x"), max_tokens=5))
    for i in range(10):
        for h in ({"content-length":str(1600*65536)}, {}):
            try:
                r=client.post("/v1/generate", content=chunks(1600), headers={"content-type":"application/json",**h})
                print(r.status_code, r.text)
            except Exception as e: print(repr(e))
    r=client.post("/v1/generate", content=b"A"*100_000_000, headers={"content-type":"application/json",**h})
    print(r.status_code, r.text)
