"""Every word of the page, in English and Chinese.

Fixed labels are translated by the browser (`word`); sentences with numbers in them by the server (`say`), in the
language that the browser asks for.
"""

from __future__ import annotations

import re

import gradio as gr
from gradio.i18n import I18nData

# ruff: noqa: E501 (Chinese counts double)
# fmt: off
TEXTS = {
    "lead": ("Speech in, presenter out. Everything is computed on this machine.", "输入语音，生成主播视频。一切都在本机计算。"),
    "create": ("Create", "制作"),
    "history": ("History", "历史"),
    "anchors": ("Presenters", "主播"),
    "check": ("Check a video", "检验视频"),
    "speech": ("Speech", "语音"),
    "speech_label": ("Upload, drop or record", "上传、拖入或录音"),
    "samples": ("Or try a sample:", "或试用示例："),
    "subtitles": ("Subtitles", "字幕"),
    "subtitles_label": (".srt or .vtt, if you have them", "如有字幕，请选择 .srt 或 .vtt"),
    "not_done": ("That did not work", "未能完成"),
    "presenter": ("Presenter", "主播"),
    "quality": ("Quality", "质量"),
    "preset_info": ("Time and memory on this machine", "本机所需的时间和内存"),
    "performance": ("Performance", "表演"),
    "style": ("Style", "风格"),
    "calm": ("Calm", "沉稳"), "neutral": ("Natural", "自然"), "lively": ("Lively", "活泼"),
    "energy": ("Gesture energy", "手势幅度"),
    "energy_info": ("0 still, 1 natural, 2 lively", "0 静止，1 自然，2 活跃"),
    "seed": ("Take number", "版本号"),
    "seed_info": ("another number, another performance", "换一个数字就换一种表演"),
    "takes": ("Takes to preview", "预览版本数"),
    "label": ("“AI-generated” label in the picture", "画面中标注“AI 生成”"),
    "draft": ("Draft", "草稿"), "standard": ("Standard", "标准"), "best": ("Best", "最佳"),
    "generate": ("Generate video", "生成视频"),
    "stop": ("Stop", "停止"),
    "preview": ("Preview motion", "预览动作"),
    "new": ("Start another", "再做一个"),
    "nothing": ("Your video appears here.", "视频将显示在这里。"),
    "hint": ("Choose a speech, a presenter and a quality, then generate. The video plays while it is being made; you may "
             "close this page meanwhile.", "选择语音、主播和质量，然后生成。视频边制作边播放；期间可以关闭本页面。"),
    "need_speech": ("Please upload a speech, record one or take a sample first.", "请先上传语音、录音或选用示例。"),
    "too_long": ("The speech lasts longer than the {limit} that this page takes; please cut it or use the command line.",
                 "语音超过本页面允许的 {limit}；请剪短或使用命令行。"),
    "ready": ("{length} of speech, ready.", "语音 {length}，可以开始。"),
    "too_many": ("You have {count} unfinished jobs; please wait for one to end or stop one in the history.",
                 "您有 {count} 个未完成的任务；请等待其结束，或在历史中停止一个。"),
    "waiting_first": ("Waiting: next in line.", "等待中：下一个就是您。"),
    "waiting": ("Waiting: {count} before yours.", "等待中：前面还有 {count} 个。"),
    "stage_speech": ("Listening to the speech", "分析语音"),
    "stage_anchor": ("Checking the presenter", "检查主播"),
    "stage_motion": ("Planning face and gestures", "规划表情和手势"),
    "stage_frames": ("Drawing the frames", "绘制画面"),
    "stage_checking": ("Checking and preparing the footage", "检查并准备素材"),
    "stage_training": ("Training the networks", "训练网络"),
    "stage_packing": ("Measuring and packing", "评测并打包"),
    "frames_of": ("{done} of {total}", "{done} / {total}"),
    "elapsed": ("{time} so far", "已用 {time}"),
    "left": ("about {time} left", "约剩 {time}"),
    "no_time": ("estimating the time", "正在估计时间"),
    "done": ("Done: {length} of video in {time}.", "完成：{length}的视频，用时 {time}。"),
    "cancelled": ("Stopped. Nothing was lost: it can go on where it was.", "已停止。内容没有丢失，可以从停下处继续。"),
    "failed": ("This did not work: {why}", "未能完成：{why}"),
    "continue": ("Continue", "继续"),
    "try_again": ("Try again", "重试"),
    "again": ("Use these settings again", "再次使用这些设置"),
    "downloads": ("Downloads", "下载"),
    "d_video": ("Video (mp4)", "视频 (mp4)"),
    "d_gif": ("GIF, first {count} s", "GIF，前 {count} 秒"),
    "d_settings": ("Settings (json)", "设置 (json)"),
    "d_npz": ("Motion (npz)", "动作 (npz)"), "d_bvh": ("Motion (BVH)", "动作 (BVH)"), "d_glb": ("Motion (GLB)", "动作 (GLB)"),
    "d_vtt": ("Subtitles (vtt)", "字幕 (vtt)"),
    "compare": ("The face before and after its pass", "面部增强前后对比"),
    "without_face": ("without", "增强前"), "with_face": ("with", "增强后"),
    "compare_how": ("The frame of this video in which the face pass changed most; drag or use the arrow keys.",
                    "本视频中面部增强变化最大的一帧；可拖动或用方向键。"),
    "report": ("Quality report", "质量报告"),
    "repeat": ("Make it again without the page", "不用网页再做一次"),
    "command": ("Command line", "命令行"),
    "python": ("Python", "Python"),
    "takes_title": ("Takes", "动作版本"),
    "takes_hint": ("Mesh previews of your motion. Pick one and the video gets exactly this motion.",
                   "动作的网格预览。选定一个，视频就使用完全相同的动作。"),
    "take": ("Take {seed}", "版本 {seed}"),
    "pick": ("Use this motion", "使用此动作"),
    "picked": ("Chosen motion", "已选动作"),
    "remove": ("Remove", "移除"),
    "search": ("Search by name or presenter", "按名称或主播搜索"),
    "state": ("State", "状态"),
    "any": ("all", "全部"),
    "s_queued": ("waiting", "等待"), "s_running": ("running", "进行中"), "s_done": ("finished", "已完成"),
    "s_failed": ("failed", "失败"), "s_cancelled": ("stopped", "已停止"),
    "no_jobs": ("Nothing here yet. Videos that you make appear in this list, also after a restart.",
                "这里还没有内容。您制作的视频会出现在此处，重启后也在。"),
    "no_match": ("Nothing fits this search.", "没有符合的内容。"),
    "more": ("{count} older ones are not shown; search to find them.", "另有 {count} 个较早的未显示；可搜索查找。"),
    "open": ("Open", "打开"),
    "delete": ("Delete", "删除"),
    "delete_sure": ("Delete this video and its files?", "删除此视频及其文件？"),
    "render_with": ("Render again with", "更换主播重新生成"),
    "k_video": ("video", "视频"), "k_preview": ("mesh preview", "网格预览"), "k_motion": ("motion", "动作"),
    "licence": ("Licence", "许可"),
    "consent": ("Consent", "授权"),
    "size": ("Picture", "画面"),
    "bundled": ("comes with the program", "程序自带"),
    "own": ("your own", "自有"),
    "export": ("Export (zip)", "导出 (zip)"),
    "verify": ("Verify files", "校验文件"),
    "verified": ("{name}: {count} files are sound.", "{name}：{count} 个文件完好。"),
    "anchor_sure": ("Delete this presenter? Videos made with it stay.", "删除此主播？已生成的视频会保留。"),
    "import": ("Add a presenter", "添加主播"),
    "import_zip": ("Anchor package (.zip)", "主播包 (.zip)"),
    "import_button": ("Import the package", "导入"),
    "need_package": ("Please choose an anchor package (.zip) first.", "请先选择主播包 (.zip)。"),
    "need_paths": ("Please name the checkpoint, Stable Diffusion 1.5, the photo and the camera file.",
                   "请填写模型、Stable Diffusion 1.5、照片和相机文件的路径。"),
    "imported": ("{name} is installed.", "{name} 已安装。"),
    "deleted": ("{name} is deleted.", "{name} 已删除。"),
    "not_here": ("This server does not let visitors change its presenters; its owner can (--manage-anchors).",
                 "本服务器不允许访客更改主播；管理员可以开启 (--manage-anchors)。"),
    "checkpoint": ("From an original Make-Your-Anchor checkpoint on this machine", "导入本机上的原版 Make-Your-Anchor 模型"),
    "f_checkpoint": ("Folder of the person's checkpoint (body/, head/)", "人物模型文件夹 (body/, head/)"),
    "f_base": ("Folder of Stable Diffusion 1.5", "Stable Diffusion 1.5 文件夹"),
    "f_reference": ("Photo of the presenter as in training", "训练时使用的人物照片"),
    "f_camera": ("Camera file (json or npz)", "相机文件 (json 或 npz)"),
    "f_head": ("Aligned photo of the head (for head networks)", "头部对齐照片（用于头部网络）"),
    "f_consent": ("Who is shown?", "画面中的人是谁？"),
    "c_synthetic": ("nobody real", "虚构人物"), "c_self": ("myself", "我本人"),
    "c_permission": ("somebody who agreed in writing", "书面同意的他人"),
    "f_agree": ("This is true, and the person shown, if real, agrees to be shown in synthetic videos.",
                "以上属实；若为真人，其同意出现在合成视频中。"),
    "f_body": ("Body", "人体模型"),
    "import_checkpoint": ("Import the checkpoint", "导入模型"),
    "train": ("Train a presenter from footage", "用素材训练主播"),
    "train_how": ("A data set is a folder with pictures or a video, the tracked motion and the camera (docs/training.md). "
                  "A training uses the processor for as long as you say; videos take longer meanwhile.",
                  "数据集是一个包含图片或视频、跟踪动作和相机的文件夹（见 docs/training.md）。训练会在设定的时间内占用处理器，期间生成视频会变慢。"),
    "f_dataset": ("Data set", "数据集"),
    "f_dataset_zip": ("or upload one (.zip)", "或上传 (.zip)"),
    "f_name": ("Name of the presenter", "主播名称"),
    "f_minutes": ("Minutes of training for each network", "每个网络的训练分钟数"),
    "f_start": ("Begin with the networks of", "起始网络"),
    "f_start_info": ("a presenter known already is learned from faster", "从已有主播开始，学得更快"),
    "f_licence": ("Licence of the result", "成果的许可"),
    "f_expires": ("Last day of the consent, if any", "授权截止日（如有）"),
    "start_training": ("Start training", "开始训练"),
    "training_of": ("Training of {name}", "训练：{name}"),
    "training_sure": ("Remove this training? What it has learned so far is lost; a finished presenter stays.",
                      "移除此训练？未完成的成果会丢失；已完成的主播会保留。"),
    "trained": ("{name} is trained and stands among the presenters.", "{name} 已训练完成，可在主播中选用。"),
    "training_queued": ("{name} is in training; this page may be closed.", "{name} 已开始训练；可以关闭本页面。"),
    "sheet": ("Pictures that training never sees: the true one on the left, the painted one on the right.",
              "训练中未见过的画面：左为真实，右为生成。"),
    "sheet_soon": ("The first painted pictures come a few minutes after the training has begun.", "训练开始几分钟后会出现首批生成画面。"),
    "no_findings": ("Nothing is wrong with this data set.", "此数据集没有问题。"),
    "only_remarks": ("It can be trained on.", "可以训练。"),
    "findings": ("Problems to be mended before it can be trained on: {count}.", "需先解决才能训练的问题：{count} 个。"),
    "problem": ("problem", "问题"), "remark": ("remark", "备注"),
    "need_dataset": ("Please choose a data set whose check finds no problems first.", "请先选择一个检查无误的数据集。"),
    "need_consent": ("Please say who is shown, and that this is true.", "请说明画面中的人是谁，并确认属实。"),
    "need_day": ("Please write the last day of the consent as 2027-12-31.", "请按 2027-12-31 的格式填写授权截止日。"),
    "check_lead": ("Was this video made by this program, and has it been changed since? The file stays on this machine.",
                   "此视频是否由本程序生成？之后是否被修改？文件只保留在本机。"),
    "check_file": ("Video", "视频"),
    "check_button": ("Check", "检验"),
    "need_video": ("Please choose a video first.", "请先选择视频。"),
    "stalled": ("waiting for the next seconds …", "等待后续画面…"),
    "offline": ("The connection is lost; your video goes on being made. This page returns by itself.",
                "连接已断开；视频仍在制作。页面会自动恢复。"),
}
# Sentences from below the page that its visitors may come to see; whatever is not among them stays English.
SENTENCES = {
    r"'(.+)' is empty \(0 bytes\)\.": "“{0}”是空文件（0 字节）。",
    r"'(.+)' holds only ([\d.]+) s of audio; at least ([\d.]+) s are needed\.": "“{0}”只有 {1} 秒音频，至少需要 {2} 秒。",
    r"'(.+)' has no audio track\.": "“{0}”没有音轨。",
    r"'(.+)' is cut off or damaged, .+": "“{0}”不完整或已损坏，无法读取音频。",
    r"'(.+)' could not be decoded as audio .+": "“{0}”无法解码为音频。",
    r"'(.+)' is a playlist, .+": "“{0}”是播放列表，不是录音。",
    r"The motion lasts ([\d.]+) s but the speech ([\d.]+) s.+": "动作长 {0} 秒，语音长 {1} 秒；请使用为此语音生成的动作。",
    r"Subtitles are \.srt or \.vtt files, not '(.+)'\.": "字幕须为 .srt 或 .vtt 文件，“{0}”不是。",
    r"'(.+)' holds no subtitles that can be read\.": "“{0}”中没有可读取的字幕。",
    r"'(.+)' is not UTF-8 text; .+": "“{0}”不是 UTF-8 文本；请另存为 UTF-8。",
    r"'(.+)' is too large for subtitles\.": "“{0}”太大，不像字幕文件。",
    r"All subtitles begin after the end .+": "所有字幕都在语音结束之后；是否属于另一段语音？",
    r"The disk is full: .+": "磁盘已满：请删除旧视频或腾出空间后重试。",
    r"The render was broken off (\d+) times .+": "制作在同一处中断了 {0} 次；本机内存可能不足。",
    r"That failed on our side; .+": "服务器出错，详情见服务器日志。",
    r"Unknown anchor '(.+?)'.+": "没有名为“{0}”的主播。",
    r"Anchor '(.+?)' is (?:damaged|incomplete).+": "主播“{0}”的文件已损坏或不完整。",
    r"An anchor '(.+?)' exists already.+": "已有名为“{0}”的主播；请先删除它或换一个名称。",
    r"The consent for anchor '(.+?)' .+": "主播“{0}”的授权记录不允许此用途。",
    r"'(.+)' is not a readable zip file\.": "“{0}”不是可读取的 zip 文件。",
    r"'(.+)' is not an anchor package.+": "“{0}”不是主播包。",
    r"There is a data set '(.+)' already.+": "已有名为“{0}”的数据集；请给 zip 换个名称。",
    r"'(.+)' cannot be trained on; .+": "数据集“{0}”有问题，无法训练。",
    r"Please give the presenter a name and a licence\.": "请填写主播名称和许可。",
    r"A training takes ([\d.]+) to ([\d.]+) minutes.+": "训练时间须为 {0} 至 {1} 分钟。",
    r"'(.+)' is not a video.*": "“{0}”不是视频。",
}
# fmt: on

_COLUMNS = {"en": 0, "zh": 1}
LABELS = gr.I18n(
    **{
        language: {f"avatar_{key}": pair[_COLUMNS[language[:2]]] for key, pair in TEXTS.items()}  # gradio has a "label"
        for language in ("en", "zh", "zh-CN", "zh-TW")
    }
)


def word(key: str) -> I18nData:
    """A fixed text, which the browser shows in its own language."""
    return LABELS(f"avatar_{key}")


def language_of(accepted: str | None) -> str:
    """ "zh" or "en", from an Accept-Language header: the first of the two that it names."""
    for part in (accepted or "").lower().split(","):
        if part.strip()[:2] in _COLUMNS:
            return part.strip()[:2]
    return "en"


def say(language: str, key: str, **values: object) -> str:
    """A text with its blanks filled in."""
    return TEXTS[key][_COLUMNS[language]].format(**values)


def translated(language: str, sentence: str) -> str:
    """A sentence of an InputError in the visitor's language, where it is known."""
    if language == "zh":
        for pattern, chinese in SENTENCES.items():
            if found := re.fullmatch(pattern, sentence, re.DOTALL):
                return chinese.format(*found.groups())
    return sentence


def lasting(language: str, seconds: float) -> str:
    """A length of time as people say it: "40 s", "3 min"."""
    from avatar_app.estimate import in_words

    words = in_words(seconds)
    return words if language == "en" else words.replace(" s", " 秒").replace(" min", " 分钟")
