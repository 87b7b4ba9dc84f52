# Copyright 2026 The titans_jax Authors.
# SPDX-License-Identifier: Apache-2.0
"""A server of this machine that speaks the JSON protocol of Google's storage.

As much of it as gcsfs and TensorStore speak: objects with generations and
preconditions, ranges, listings, uploads in one piece or in two.
"""

import http.server
import itertools
import json
import re
import socketserver
import threading
import urllib.parse


class _Object:

  def __init__(self, content: bytes, generation: int):
    self.content = content
    self.generation = generation


class Handler(http.server.BaseHTTPRequestHandler):
  """One request."""

  protocol_version = "HTTP/1.1"

  def handle_one_request(self):
    try:
      super().handle_one_request()
    except ConnectionError:
      self.close_connection = True

  def do_GET(self):
    bucket, name = self.place()
    if name is None and self.path_only().endswith("/o"):
      return self.answer(self.listing())
    if name is None:
      return self.answer({"kind": "storage#bucket", "name": bucket})
    found = self.server.objects.get(name)
    if found is None:
      return self.fail(404)
    if not self.fits(found):
      return self.fail(304 if "ifGenerationNotMatch" in self.query() else 412)
    if self.query().get("alt") != "media":
      return self.answer(self.describe(name))
    return self.send(found)

  do_HEAD = do_GET

  def do_POST(self):
    query = self.query()
    if self.path_only().startswith("/batch/"):
      return self.batch(self.body())
    if (
        copy := re.search("/(rewriteTo|copyTo|moveTo)/", self.path)
    ) is not None:
      return self.copy(copy[1])
    if "upload_id" in query:
      return self.go_on(query["upload_id"])
    body = self.body()
    name = query.get("name")
    if query.get("uploadType") == "resumable":
      number = str(next(self.server.numbers))
      self.server.uploads[number] = (
          name or json.loads(body)["name"],
          bytearray(),
      )
      host, port = self.server.server_address
      location = (
          f"http://{host}:{port}/upload/storage/v1/b/b/o?upload_id={number}"
      )
      return self.answer({}, headers={"Location": location})
    if query.get("uploadType") == "multipart":
      described, body = self.parts(body)
      name = name or json.loads(described)["name"]
    self.store(name, body)

  def do_PUT(self):
    self.go_on(self.query()["upload_id"])

  def go_on(self, number):
    """Takes the next bytes of an upload in pieces."""
    name, content = self.server.uploads[number]
    content += self.body()
    if self.headers.get("Content-Range", "").endswith("/*"):
      return self.answer(None, 308, {"Range": f"bytes=0-{len(content) - 1}"})
    self.store(name, bytes(content))

  def parts(self, body):
    """Returns the contents of a multipart body's two parts."""
    boundary = re.search('boundary="?([^";]+)', self.headers["Content-Type"])[1]
    for part in body.split(f"--{boundary}".encode())[1:3]:
      content = re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1]
      yield re.sub(rb"\r?\n\Z", b"", content)

  def do_DELETE(self):
    _, name = self.place()
    self.body()
    with self.server.lock:
      found = self.server.objects.get(name)
      if found is None:
        return self.fail(404)
      if not self.fits(found):
        return self.fail(412)
      del self.server.objects[name]
    self.answer(None, 204)

  # --------------------------------------------------------------------------

  def store(self, name, content):
    with self.server.lock:
      if not self.fits(self.server.objects.get(name)):
        return self.fail(412)
      self.server.put(name, content)
    self.answer(self.describe(name))

  def copy(self, kind):
    source = re.search("/o/([^/]+)/", self.path)[1]
    target = re.search("/o/([^/?]+)(\\?|$)", self.path)[1]
    source, target = map(urllib.parse.unquote, (source, target))
    with self.server.lock:
      found = self.server.objects.get(source)
      if found is None:
        return self.fail(404)
      self.server.put(target, found.content)
      if kind == "moveTo":
        del self.server.objects[source]
    described = self.describe(target)
    if kind == "rewriteTo":
      described = {"done": True, "resource": described}
    self.answer(described)

  def batch(self, body):
    parts = []
    boundary = "batch"
    for number, name in enumerate(
        re.findall(rb"DELETE [^ ]*/o/([^ ?]+)", body)
    ):
      name = urllib.parse.unquote(name.decode())
      status = 204 if self.server.objects.pop(name, None) else 404
      parts.append(
          f"--{boundary}\r\nContent-Type: application/http\r\n"
          f"Content-ID: <response-{number + 1}>\r\n\r\n"
          f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n\r\n"
      )
    content = "".join(parts) + f"--{boundary}--\r\n"
    self.reply(
        200,
        content.encode(),
        {"Content-Type": f"multipart/mixed; boundary={boundary}"},
    )

  def listing(self):
    query = self.query()
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    items, prefixes = [], set()
    for name in sorted(self.server.objects):
      if not name.startswith(prefix):
        continue
      rest = name[len(prefix) :]
      if delimiter and delimiter in rest:
        prefixes.add(prefix + rest.partition(delimiter)[0] + delimiter)
      elif name >= query.get("startOffset", "") and (
          "endOffset" not in query or name < query["endOffset"]
      ):
        items.append(self.describe(name))
    return {"items": items, "prefixes": sorted(prefixes)}

  def describe(self, name):
    found = self.server.objects[name]
    return {
        "kind": "storage#object",
        "bucket": "bucket",
        "name": name,
        "size": str(len(found.content)),
        "generation": str(found.generation),
        "metageneration": "1",
        "timeCreated": "2026-01-01T00:00:00.000Z",
        "updated": "2026-01-01T00:00:00.000Z",
    }

  def fits(self, found):
    query = self.query()
    generation = 0 if found is None else found.generation
    wanted = query.get("ifGenerationMatch")
    unwanted = query.get("ifGenerationNotMatch")
    return (wanted is None or int(wanted) == generation) and (
        unwanted is None or int(unwanted) != generation
    )

  def send(self, found):
    content, status, headers = found.content, 200, {}
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
    if wanted is not None:
      size = len(content)
      if not wanted[1]:  # the last bytes
        first, last = max(size - int(wanted[2]), 0), size - 1
      else:
        first = int(wanted[1])
        last = min(int(wanted[2] or size), size - 1)
      if first >= size:
        return self.fail(416)
      content, status = content[first : last + 1], 206
      headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    headers["X-Goog-Generation"] = str(found.generation)
    self.reply(status, content, headers)

  def path_only(self):
    return self.path.partition("?")[0]

  def query(self):
    return dict(
        urllib.parse.parse_qsl(
            self.path.partition("?")[2], keep_blank_values=True
        )
    )

  def place(self):
    match = re.search("/b/([^/]+)(?:/o/(.+))?", self.path_only())
    name = match[2] and urllib.parse.unquote(match[2])
    return match[1].partition("/")[0], name

  def body(self):
    if self.headers.get("Transfer-Encoding") == "chunked":
      content = b""
      while size := int(self.rfile.readline(), 16):
        content += self.rfile.read(size)
        self.rfile.readline()
      self.rfile.readline()
      return content
    return self.rfile.read(int(self.headers.get("Content-Length", 0)))

  def answer(self, value, status=200, headers=None):
    content = b"" if value is None else json.dumps(value).encode()
    headers = {"Content-Type": "application/json"} | (headers or {})
    self.reply(status, content, headers)

  def fail(self, status):
    error = {"code": status, "message": f"{status}"}
    self.answer({"error": error} if status != 304 else None, status)

  def reply(self, status, content, headers):
    self.send_response(status)
    for name, value in headers.items():
      self.send_header(name, value)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(content)

  def log_message(self, *_):
    pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
  """Holds one bucket, in memory; runs from `start` on."""

  daemon_threads = True
  request_queue_size = 128

  def __init__(self):
    super().__init__(("127.0.0.1", 0), Handler)
    self.objects: dict[str, _Object] = {}
    self.uploads: dict[str, tuple[str, bytearray]] = {}
    self.numbers = itertools.count(1_000_000)
    self.lock = threading.RLock()

  def start(self) -> str:
    """Serves, and returns the address."""
    threading.Thread(target=self.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{self.server_address[1]}"

  def put(self, name: str, content: bytes) -> None:
    self.objects[name] = _Object(content, next(self.numbers))
